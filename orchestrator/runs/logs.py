"""The ranks' own output: whole, its end, what is new, and where to look when something broke.

Logs are bytes that a rank wrote; nothing here interprets them as more than text. Readers go by byte offset, survive a
truncated or replaced file and hold a bounded amount in memory. Used by `orch logs`, follow and the failure report.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.runs.render import decode
from workloads.contract.files import read_tail
from workloads.contract.rundir import RunDir

CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 10
TAIL_BYTES = 16 << 20

_HEAD = "Traceback (most recent call last)"
_NEWS = re.compile(
    r"Traceback \(most recent call last\)|Fatal Python error|Segmentation fault|[Oo]ut of memory|\bKilled\b|\bpanic\b"
    r"|\b(ERROR|CRITICAL|FATAL|WARNING)\b|(Error|Exception|Warning)(: |$)"
    r"|(CUDA|NCCL|cuDNN)\b.{0,40}\b(error|WARN|failure)"
    r"|^(\S{1,40}: )?(error|warning|fatal)(\[[\w-]+\])?: ",
)


# one of these is in every line that is news: looking for them first is 20 times as fast as the pattern
_HINTS = (
    "Traceback", "Fatal", "Segmentation", "ut of memory", "Killed", "panic", "ERROR", "CRITICAL", "FATAL", "WARNING",
    "Error", "Exception", "Warning", "CUDA", "NCCL", "cuDNN", "error: ", "error[", "warning: ", "fatal: ",
)  # fmt: skip


def is_news(line: str) -> bool:
    """Whether a line by itself speaks of an error or a warning."""
    return any(hint in line for hint in _HINTS) and _NEWS.search(line) is not None


def log_ranks(run: RunDir, world_size: int | None) -> list[int]:
    """Ranks that have a log, or will have one."""
    found = {int(m[1]) for p in _names(run.logs) if (m := re.fullmatch(r"rank(\d{1,6})\.log", p))}
    return sorted(found | set(range(world_size or 0)))


def _names(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir()]
    except OSError:
        return []


@dataclass
class LogReader:
    """Whole lines of one growing file. `offset` is where the next read begins; `ends`: lines keep their newline, so
    that all that is read together is what the file holds."""

    path: Path
    offset: int = 0
    ends: bool = False
    _inode: int = -1
    _rest: bytes = field(default=b"", repr=False)

    @property
    def position(self) -> int:
        """Byte offset behind the last line that was given."""
        return self.offset - len(self._rest)

    def read(self, *, final: bool = False, limit: int = CHUNK_BYTES) -> list[bytes]:
        """Lines completed since the last call. `final` also gives a last line without end.

        At most `limit` bytes are read a call; with the default an empty answer means that there is nothing new. A
        line longer than `MAX_LINE_BYTES` is given in pieces.
        """
        data = self._new_bytes(limit)
        if not data and not (final and self._rest):
            return []
        buffer = self._rest + data
        cut = buffer.rfind(b"\n") + 1
        lines, self._rest = _split(buffer[:cut], self.ends), buffer[cut:]
        at_end = final and not lines and len(data) < limit
        if self._rest and (at_end or len(self._rest) > MAX_LINE_BYTES):
            lines, self._rest = [*lines, self._rest], b""
        return lines

    def _new_bytes(self, limit: int) -> bytes:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                return b""
            if self._inode not in (-1, st.st_ino) or st.st_size < self.offset:
                self.offset, self._rest = 0, b""  # replaced or truncated
            self._inode = st.st_ino
            data = os.pread(fd, self._up_to_a_hole(fd, limit), self.offset)
            self.offset += len(data)
            return data
        finally:
            os.close(fd)

    def _up_to_a_hole(self, fd: int, limit: int) -> int:
        """How much to read. What was dropped of a log reads as zeros, gigabytes of them: it is passed over."""
        try:
            data_at = os.lseek(fd, self.offset, os.SEEK_DATA)
            hole_at = os.lseek(fd, data_at, os.SEEK_HOLE)
        except OSError:  # at the end, or a file system that cannot tell
            return limit
        if data_at > self.offset:
            self.offset, self._rest = data_at, b""
        return min(limit, hole_at - data_at)


def _split(data: bytes, ends: bool) -> list[bytes]:
    """The lines of `data`, which ends with one."""
    lines = data.split(b"\n")[:-1]
    return [line + b"\n" for line in lines] if ends else lines


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin. Looks at the last 16 MiB at most."""
    try:
        size = path.stat().st_size
        data = read_tail(path, TAIL_BYTES)
    except OSError:
        return 0
    start = size - len(data)
    if lines <= 0:
        return size
    at = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return start
    return start + at + 1


def last_lines(path: Path, lines: int, floor: int = 0) -> list[str]:
    """The last `lines` lines as text, not yet harmless; none that begins before byte `floor`."""
    reader = LogReader(path, offset=max(floor, tail_offset(path, lines)))
    found: list[bytes] = []
    while new := reader.read(final=True):
        found += new
    return [decode(line) for line in found[-lines:]]


def iter_lines(path: Path, offset: int = 0, *, ends: bool = False) -> Iterator[bytes]:
    """Every line that is there now, from `offset`."""
    reader = LogReader(path, offset=offset, ends=ends)
    while new := reader.read(final=True):
        yield from new


def lines_before(path: Path, offset: int) -> int:
    """How many lines end before byte `offset`."""
    reader, count, before = LogReader(path), 0, -1
    while before < reader.offset < offset:
        before = reader.offset
        count += len(reader.read(limit=min(CHUNK_BYTES, offset - before)))
    return count


@dataclass(frozen=True)
class Block:
    """Lines that belong to one mishap; `line` counts from 1."""

    line: int
    lines: tuple[str, ...]


MAX_BLOCK_LINES = 400


def error_blocks(lines: Iterator[str]) -> Iterator[Block]:
    """Tracebacks whole, and other lines that speak of an error or a warning; neighbours are one block. Pure."""
    found: list[str] = []
    first, inside = 0, False
    for number, line in enumerate(lines, 1):
        inside = _belongs(line, inside) and len(found) < MAX_BLOCK_LINES
        if inside or is_news(line):
            first = first or number
            found.append(line)
            inside = inside or _HEAD in line
        elif found:
            yield Block(first, tuple(found))
            found, first = [], 0
    if found:
        yield Block(first, tuple(found))


_FRAME = re.compile(r"(\s|\[rank\s*\d+\]:?\s)*(\s+\S|Traceback|During handling|The above exception|$)")


def _belongs(line: str, inside: bool) -> bool:
    """Inside a traceback: frames (indented) go on; the exception's own line is news by itself or ends it."""
    return inside and bool(_FRAME.match(line))
