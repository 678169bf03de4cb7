"""Heartbeats that cannot be written where they belong: they wait in memory until the disk takes them again.

A run directory may be full, read-only or gone while its ranks are well. Their lines go to a file in /dev/shm, named by
user, run and rank, 0600 and bounded; the supervisor on that machine reads it beside the real one, and whoever writes
the real one next (the rank, its shim at the end, the next attempt) moves the lines back, in order. Standard library
only.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from workloads.contract.files import LineWriter, read_bytes_bounded
from workloads.contract.rundir import RunDir

ASIDE = Path("/dev/shm")
MAX_ASIDE_BYTES = 1 << 20
"""An hour of a line a second. Beyond it the oldest half goes: what a rank does now is what matters."""


def aside_of(run: RunDir, rank: int) -> Path:
    """Where lines of this rank wait."""
    return ASIDE / f"orch-{os.geteuid()}-{run.run_id}-beats{rank}.jsonl"


def put_aside(run: RunDir, rank: int, line: bytes) -> None:
    """Append one line. OSError when that is not possible either, or something else lies there."""
    path = aside_of(run, rank)
    if not is_ours(path):
        raise FileExistsError(f"{path} is not ours")
    if path.exists() and path.stat().st_size + len(line) > MAX_ASIDE_BYTES:
        _halve(path)
    writer = LineWriter(path)
    try:
        writer.write(line)
    finally:
        writer.close()


def is_ours(path: Path) -> bool:
    """True for nothing, and for a regular file of our own: /dev/shm is everybody's."""
    try:
        st = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(st.st_mode) and st.st_uid == os.geteuid() and st.st_nlink == 1


def move_back(run: RunDir, rank: int, writer: LineWriter | None = None) -> int:
    """Append the waiting lines to the heartbeat file; how many. OSError when it does not take them: then those that it
    took are waiting no more, and the others wait on. `writer`: an open one of that file."""
    path = aside_of(run, rank)
    if not path.exists() or not is_ours(path):
        return 0
    data = read_bytes_bounded(path, 2 * MAX_ASIDE_BYTES)
    lines = [line + b"\n" for line in data.split(b"\n") if line]
    own = writer is None
    writer = writer or LineWriter(run.heartbeat(rank))
    done = 0
    try:
        for line in lines:
            writer.write(line)
            done += 1
    except OSError:
        _rewrite(path, b"".join(lines[done:]))
        raise
    finally:
        if own:
            writer.close()
    path.unlink(missing_ok=True)
    return done


def _halve(path: Path) -> None:
    data = read_bytes_bounded(path, 2 * MAX_ASIDE_BYTES)
    cut = data.find(b"\n", len(data) // 2) + 1
    _rewrite(path, data[cut:])


def _rewrite(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
