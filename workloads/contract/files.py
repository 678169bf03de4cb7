"""Writing and reading small files so that a crash, a full disk or a hostile writer does no harm.

Write discipline: a state file is born whole (`atomic_write`: temporary name, loop on short writes, fsync file,
rename, fsync directory); a record line is one `write` on an O_APPEND descriptor. Readers are bounded.
Standard library only; used on every side.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 4 << 20


def fsync_dir(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write `data` whole, looping on short writes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def atomic_write(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `data`: readers see the old bytes or the new, never a mixture.

    `durable=False` skips both fsyncs: for state that is rewritten every second and can be recomputed.
    Raises OSError (disk full, read-only) with the old file untouched and no temporary file left.
    """
    tmp = path.with_name(f"{path.name}.tmp.{threading.get_native_id()}")  # no other thread or process has it
    try:
        fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        tmp.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            tmp.unlink()
        raise
    if durable:
        fsync_dir(path.parent)


def dump_json(value: Any) -> bytes:
    """Compact JSON, one line, NaN refused (ValueError)."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def atomic_write_json(path: Path, value: Any, *, mode: int = 0o600, durable: bool = True) -> None:
    atomic_write(path, dump_json(value), mode=mode, durable=durable)


def read_bytes_bounded(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """A regular file's bytes. ValueError when it is not one or is larger than `limit`; OSError as usual.

    Symlinks are not followed: what lies in a run directory may have been put there by somebody else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise ValueError(f"{path} is not a regular file")
        chunks, left = [], limit + 1
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    data = b"".join(chunks)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return data


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from `path`. FileNotFoundError when absent, ValueError when it is anything else."""
    try:
        value = json.loads(read_bytes_bounded(path, limit))
    except RecursionError as e:
        raise ValueError(f"{path} is nested too deeply") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def try_read_json(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but None when the file is absent, torn or foreign."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


class LineWriter:
    """Appends whole lines to one file, one `write` each, from one process.

    After a short write (disk full) the next line starts with a newline, so that it is never merged into the torn
    one. Never fsyncs.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path, self._torn = path, False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        size = os.fstat(self._fd).st_size
        if size:
            with path.open("rb") as f:
                f.seek(size - 1)
                self._torn = f.read(1) != b"\n"

    def write(self, line: bytes) -> None:
        """Append `line` (ending in a newline). Raises OSError when the disk did not take it whole: then the line is not
        there, and the file stays readable."""
        data = b"\n" + line if self._torn else line
        self._torn = True
        missing = len(data) - os.write(self._fd, data)
        self._torn = missing > 0
        if missing > 1:  # where the newline alone is missing the line is whole: written again it would be there twice
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def is_gone(self) -> bool:
        """True when the file was removed meanwhile: what is written goes nowhere."""
        return os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line, opening and closing the file: for rare records."""
    writer = LineWriter(path)
    try:
        writer.write(dump_json(value))
    finally:
        writer.close()


def solid_from(fd: int, size: int) -> int:
    """From which byte on a file of `size` bytes has no hole (lseek(2), SEEK_HOLE); 0 where nobody can tell."""
    at = start = 0
    with contextlib.suppress(OSError):  # ENXIO: nothing but a hole up to the end
        while (hole := os.lseek(fd, at, os.SEEK_HOLE)) < size:
            start = size
            start = at = os.lseek(fd, hole, os.SEEK_DATA)
    return min(start, size)


def read_tail(path: Path, limit: int = 65536) -> bytes:
    """At most the last `limit` bytes of a regular file; b"" when it is absent."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            return b""
        return os.pread(fd, limit, max(0, st.st_size - limit))
    finally:
        os.close(fd)
