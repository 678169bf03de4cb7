"""Everything a process does to the disk, one named step after the other, and a deed of the test's before each.

Python tells an audit hook of every file it opens for writing, every directory made, every rename and removal, whoever
calls (torch's writer as well); fsync, write and truncate are wrapped. No hook is needed in what is tested. For a
process that ends afterwards: an audit hook cannot be taken out.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock"})


class Steps:
    """Calls `deed(n, name)` before the n-th step below `root`, from now to the end of the process."""

    def __init__(self, root: Path, deed: Callable[[int, str], None]) -> None:
        self._root, self._deed = str(root), deed
        self.count, self._inside = 0, False
        sys.addaudithook(self._heard)
        for name in ("fsync", "write"):
            self._wrap(name)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(path, str) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in EVENTS:
            return
        where = [os.fspath(a) for a in args if isinstance(a, str | os.PathLike)]
        # an int is a directory's or a file's descriptor: rmtree and locks
        if event != "fcntl.flock" and where and not any(w.startswith(self._root) or "/" not in w for w in where):
            return
        self._step(" ".join([event.removeprefix("os."), *(w.removeprefix(self._root).lstrip("/") for w in where)]))

    def _wrap(self, name: str) -> None:
        real = getattr(os, name)

        def wrapped(fd: int, *args: Any) -> Any:
            if self._inside:
                return real(fd, *args)
            path = os.readlink(f"/proc/self/fd/{fd}")
            if not path.startswith(self._root):
                return real(fd, *args)
            self._step(f"{name} {path.removeprefix(self._root).lstrip('/')}")
            if name == "write" and len(args[0]) > 1:  # half of it, then a step more
                done = real(fd, args[0][: len(args[0]) // 2])
                self._step(f"rest of write {path.removeprefix(self._root).lstrip('/')}")
                return done + real(fd, args[0][done:])
            return real(fd, *args)

        setattr(os, name, wrapped)

    def _step(self, name: str) -> None:
        if self._inside:
            return
        self._inside = True
        try:
            self._deed(self.count, name)
        finally:
            self._inside = False
        self.count += 1


def killed_at(n: int, root: Path, report: int) -> Steps:
    """SIGKILL to this process before its n-th step; the step's name goes to the descriptor `report` first."""

    def deed(now: int, name: str) -> None:
        if now == n:
            os.write(report, name.encode()[:4000])
            os.kill(os.getpid(), signal.SIGKILL)

    return Steps(root, deed)
