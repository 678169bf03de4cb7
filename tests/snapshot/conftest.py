"""A repository, an operator's home, and a pod: a real second process behind the real seam."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pods import snapshot as pushing
from pods.pod import FarPod
from pods.transport.local import LocalTransport
from pods.tree import source_root, tree_files
from workloads.contract.rundir import OrchHome


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    return OrchHome(tmp_path / "home")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[FarPod]:
    made = FarPod("far", LocalTransport(), root=str(tmp_path / "far"))
    yield made
    made.close()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


@pytest.fixture
def own_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Orch's own files as they are now, somewhere where nobody edits them; what is pushed as its tree."""
    root = tmp_path / "installed"
    for path in tree_files(source_root()):
        write(root, {path.relative_to(source_root()).as_posix(): path.read_bytes()})
    monkeypatch.setattr(pushing, "source_root", lambda: root)
    return root


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    done = subprocess.run(
        ["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    return done.stdout.strip()


def write(folder: Path, files: Mapping[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def tree_of(folder: Path) -> dict[bytes, tuple[str, bytes]]:
    """What lies in a directory: {path: (kind, content or target)}; directories are told by what is in them."""
    found: dict[bytes, tuple[str, bytes]] = {}
    top = os.fsencode(folder)
    for here, folders, names in os.walk(top):
        for name in [*folders, *names]:
            path = os.path.join(here, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                found[os.path.relpath(path, top)] = ("l", os.readlink(path))
            elif stat.S_ISREG(mode):
                with open(path, "rb") as f:
                    found[os.path.relpath(path, top)] = ("x" if mode & 0o100 else "f", f.read())
    return found
