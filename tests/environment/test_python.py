"""A pod without Python gets one with nothing but a shell; cut or damaged on the way, the next try makes it whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pytest

from pods.environment.ensure import about
from pods.environment.pythons import bring_python, bring_to_bare
from pods.pod import FarPod, NeedsPython
from pods.remote import pythonpack
from pods.transport.base import Process, Result
from pods.transport.local import LocalTransport
from tests.environment.conftest import MINOR, PLATFORM
from workloads.contract.errors import OrchError, RemoteError, UnreachableError
from workloads.contract.rundir import OrchHome

TOOLS = (
    "sh", "dd", "gzip", "mkdir", "mv", "chmod", "ln", "rm", "cat", "wc", "uname", "getconf", "sleep", "ls", "head",
)  # fmt: skip


class Bare(LocalTransport):
    """This machine as one with a shell, the tools of a small image, and no Python. `cut_after`: puts that arrive."""

    def __init__(self, tools: Path, home: Path) -> None:
        self.given = {"PATH": str(tools), "HOME": str(home)}
        self.puts: list[str] = []
        self.cut_after: int | None = None

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        return super().run(self._argv(argv), timeout_s=timeout_s, stdin=stdin)

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        return super().start(self._argv(argv), timeout_s=timeout_s)

    def put(self, data: bytes, path: PurePosixPath, *, timeout_s: float, mode: int = 0o600) -> None:
        if self.cut_after is not None and len(self.puts) >= self.cut_after:
            raise UnreachableError("E-POD-001", "cut")
        super().put(data, path, timeout_s=timeout_s, mode=mode)
        self.puts.append(path.name)

    def _argv(self, argv: Sequence[str]) -> list[str]:
        return ["/usr/bin/env", "-i", *(f"{k}={v}" for k, v in self.given.items()), *argv]


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    for shown in ("/usr/local/bin/python3", "/opt/conda/bin/python3"):
        if Path(shown).exists():
            pytest.skip(f"{shown} is here and cannot be hidden")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (tools / tool).symlink_to(found)
    (tmp_path / "user").mkdir()
    yield Bare(tools, tmp_path / "user")


def works(python: str) -> None:
    code = "import ssl, json, subprocess, ctypes, zipfile, sqlite3, sys, sysconfig; print(sys.prefix)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(Path(python).parents[1])
    assert (Path(python).parents[1] / "include" / f"python{MINOR}" / "Python.h").exists()


def test_a_pod_without_python_gets_one(bare: Bare, builds: Path, tmp_path: Path) -> None:
    """Cut within the transfer, damaged, then whole; what had arrived is not sent again."""
    home = OrchHome(builds.parent)
    pod = FarPod("bare", bare)
    with pytest.raises(NeedsPython):
        pod.connect()
    bare.cut_after = 3
    with pytest.raises(UnreachableError):
        bring_to_bare(bare, None, home, lambda _: None, minor=MINOR)
    bare.cut_after, first = None, list(bare.puts)
    [incoming] = (tmp_path / "user" / ".orch" / "python").iterdir()
    piece = incoming / "piece.00000"
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 255
    piece.write_bytes(data)
    with pytest.raises(RemoteError) as e:
        bring_to_bare(bare, None, home, lambda _: None, minor=MINOR)
    assert e.value.code == "E-ENV-072"
    assert set(first).isdisjoint(bare.puts[len(first) :]) and len(bare.puts) > len(first)
    python = bring_to_bare(bare, None, home, lambda _: None, minor=MINOR)
    works(python)
    sent = len(bare.puts)
    assert bring_to_bare(bare, None, home, lambda _: None, minor=MINOR) == python and len(bare.puts) == sent
    assert [p.name for p in (tmp_path / "user" / ".orch" / "python").iterdir()] == [Path(python).parents[1].name]
    assert about(pod).pythons[0].path == python
    pod.close()


def test_a_second_version_comes_by_operations(builds: Path, tmp_path: Path) -> None:
    pod = FarPod("pod", LocalTransport(), root=str(tmp_path / "pod"))
    try:
        python = bring_python(pod, OrchHome(builds.parent), MINOR, PLATFORM, lambda _: None)
        assert bring_python(pod, OrchHome(builds.parent), MINOR, PLATFORM, lambda _: None) == python
    finally:
        pod.close()
    works(python)
    assert [p.name for p in (tmp_path / "pod" / "python").iterdir()] == [Path(python).parents[1].name]


def test_a_shell_that_answers_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    with pytest.raises(OrchError) as e:
        bring_to_bare(Bare(tmp_path / "tools", Path("/nonexistent\n|")), None, OrchHome(tmp_path), lambda _: None)
    assert e.value.code in ("E-ENV-070", "E-ENV-071")


@pytest.mark.parametrize(
    "line", ["f 1 aa /etc/passwd", "f 1 aa ../x", "l /etc x", "d a/../../b", "q x", "f -1 aa x", "f 1", ""]
)
def test_an_index_never_leaves_the_build(line: str) -> None:
    with pytest.raises(ValueError):
        list(pythonpack.rows(f"{line}\nd "))
