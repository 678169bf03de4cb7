"""Files of rows, a line a step: written in order, whole or not at all, and cut back when steps are made again.

A line that a full or failing disk cut is taken back, at the latest before the next one, and tried again with it.
Standard library only. Called by the trainer's books and by `Run` for scripts.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from workloads.contract.files import atomic_write, write_all

MAX_WAITING_LINES = 100_000


class RowFile:
    """Appends lines in order; what the disk refuses waits in memory and is written with a later line."""

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path = path
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING_LINES)
        self._torn_at: int | None = None
        """the size of the file without the line that is being written, or that the disk has cut"""
        self._warned = False
        self._lock = threading.Lock()  # the thread that saves a checkpoint syncs while steps are noted
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if header and os.fstat(self._fd).st_size == 0:
            self.write(header)

    def write(self, line: bytes) -> None:
        """Never raises OSError; says once that the disk refuses."""
        with self._lock:
            self._write(line)

    def _write(self, line: bytes) -> None:
        if line:
            self._waiting.append(line)
        try:
            self._mend()
            size = os.fstat(self._fd).st_size
            while self._waiting:
                self._torn_at = size
                write_all(self._fd, self._waiting[0])
                self._torn_at = None
                size += len(self._waiting.popleft())
            self._warned = False
        except OSError as e:
            with contextlib.suppress(OSError):  # a disk that fails refuses this too: before the next line, then
                self._mend()
            if not self._warned:
                print(f"warning: {self._path.name}: {e}; lines wait in memory", file=sys.stderr, flush=True)
            self._warned = True

    def _mend(self) -> None:
        """No torn line stays."""
        if self._torn_at is not None:
            os.ftruncate(self._fd, self._torn_at)
            self._torn_at = None

    def sync(self) -> None:
        """Raises OSError when the disk fails or lines still wait: a checkpoint needs the rows before it."""
        with self._lock:
            if self._waiting:
                self._write(b"")
            if self._waiting:
                raise OSError(f"{self._path.name}: {len(self._waiting)} lines are not written")
        os.fsync(self._fd)


def csv_step(line: bytes) -> int | None:
    first = line.split(b",", 1)[0]
    return int(first) if first.isdigit() else None


def ledger_step(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int else None


def cut(path: Path, archive: Path, keep: int, step_of: Callable[[bytes], int | None], header: bytes = b"") -> int:
    """Move lines of steps above `keep`, and lines that are none, from `path` to the end of `archive`."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    good: list[bytes] = []
    gone: list[bytes] = []
    for line in lines:
        step = step_of(line) if line.endswith(b"\n") else None
        if line != header:
            (good if step is not None and step <= keep else gone).append(line)
    if not gone:
        return 0
    old = archive.read_bytes() if archive.exists() else header
    # the archive first: a crash in between repeats rows there and loses none
    atomic_write(archive, old + b"".join(x.rstrip(b"\n") + b"\n" for x in gone))
    atomic_write(path, header + b"".join(good))
    return len(gone)


def host_number(value: object) -> float | None:
    """`value` as a float where that needs no device; None for a tensor on one and for what is no number."""
    device = getattr(value, "device", None)
    if value is None or (device is not None and getattr(device, "type", "cpu") != "cpu"):
        return None
    detach = getattr(value, "detach", None)  # torch warns of a loss that still has its graph
    try:
        return float(value if detach is None else detach())  # type: ignore[arg-type]  # numpy scalars and tensors too
    except (TypeError, ValueError, RuntimeError):
        return None
