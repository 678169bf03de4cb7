"""An environment on this pod: `$ORCH_HOME/envs/<hash>`, the files beside it, and whether it is whole. Never builds.

    <hash>/                 the environment; whole when it holds `orch-env.json`, which is written last
    <hash>.lock             held by `flock` while its builder, or the uv it started, lives
    <hash>.order.json       what is to be built          <hash>.log         what uv said
    <hash>.state.json       how far the builder is, or why it failed

Standard library only. Called by `pods.remote.env`, `envbuild` and `envgc`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.contract.errors import RemoteError
from workloads.contract.files import try_read_json
from workloads.contract.rundir import OrchHome

MARKER = "orch-env.json"
PYTHON_S = 20.0
_ASK = (
    "import platform,sys,sysconfig,os;p=sysconfig.get_paths()['include'];"
    "print('%d.%d.%d|%s|%d|%d' % (*sys.version_info[:3], platform.machine(),"
    " os.path.exists(os.path.join(p,'Python.h')), sys.version_info.releaselevel == 'final'))"
)


@dataclass(frozen=True)
class EnvDir:
    home: OrchHome
    hash: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{16}", self.hash):
            raise RemoteError("E-ENV-020", "that is no hash of an environment", value=self.hash)

    @property
    def path(self) -> Path:
        return self.home.envs / self.hash

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def marker(self) -> Path:
        return self.path / MARKER

    def beside(self, suffix: str) -> Path:
        return self.home.envs / f"{self.hash}.{suffix}"

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """The descriptor that holds the lock, or None when a builder has it."""
        self.home.envs.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.beside("lock"), flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def busy(self) -> bool:
        with self.locked() as fd:
            return fd is None

    def ready(self) -> dict[str, Any] | None:
        """The marker of an environment that is whole: cheap, nothing is run. None when it is not, or is damaged."""
        row = try_read_json(self.marker)
        if row is None or row.get("hash") != self.hash or not os.access(self.python, os.X_OK):
            return None
        return row if row.get("dists_sha256") == digest(distributions(self.path)) else None

    def remove(self) -> None:
        """Take it away in one step for every reader; what was begun by a process that died goes too."""
        if self.path.exists():
            self.path.rename(self.home.envs / f".trash.{self.hash}.{os.getpid()}")
        for trash in self.home.envs.glob(f".trash.{self.hash}.*"):
            shutil.rmtree(trash, ignore_errors=True)


def distributions(env: Path) -> list[str]:
    """`name-version.dist-info` of all that is installed, by the names of directories alone."""
    found = env.glob("lib/python*/site-packages/*.dist-info")
    return sorted(p.name for p in found if (p / "METADATA").exists())


def digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of disk of a file or of all below a directory; links are not followed, a hard link counts once."""
    total, seen = 0, set()
    entries = [path]
    for folder, folders, names in os.walk(path):
        entries += [Path(folder) / n for n in (*folders, *names)]
    for entry in entries:
        try:
            st = entry.lstat()
        except OSError:
            continue
        if (st.st_dev, st.st_ino) not in seen:
            seen.add((st.st_dev, st.st_ino))
            total += st.st_blocks * 512
    return total


def pythons(home: OrchHome, minor: str | None = None) -> list[tuple[str, str, bool]]:
    """(path, version, has headers) of interpreters on this pod, best first: with headers, which Triton needs, newest.

    `minor`: of that version alone, as "3.12".
    """
    names = [f"python{v}" for v in ("3.12", "3.11")] + ["python3"]
    paths = [str(p) for p in sorted(home.pythons.glob("*/bin/python3"))] + [shutil.which(n) for n in names]
    paths += [sys.executable, "/usr/local/bin/python3", "/opt/conda/bin/python3"]
    found: dict[str, tuple[str, str, bool]] = {}
    for path in paths:
        if path and os.access(path, os.X_OK) and os.path.realpath(path) not in found:
            version, headers = look(path)
            if version and version.rpartition(".")[0] in ("3.11", "3.12"):
                found[os.path.realpath(path)] = (path, version, headers)
    rows = [r for r in found.values() if minor is None or r[1].startswith(f"{minor}.")]
    return sorted(rows, key=lambda r: (r[2], tuple(int(x) for x in r[1].split("."))), reverse=True)


def look(python: str) -> tuple[str, bool]:
    """(version, has headers) of an interpreter, ("", False) when it cannot be run or is no release."""
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", _ASK], capture_output=True, text=True, timeout=PYTHON_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "", False
    m = re.fullmatch(r"(\d+\.\d+\.\d+)\|\S+\|([01])\|1", done.stdout.strip())
    return (m[1], m[2] == "1") if m and done.returncode == 0 else ("", False)
