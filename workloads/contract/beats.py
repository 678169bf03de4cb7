"""Heartbeat lines: what a good one looks like, and reading a file of them that may be torn, hostile or growing.

Any bytes give beats or counted bad lines; never an exception, never a beat that is not one. Standard library only.
Field names: contracts, section Heartbeat. A value that is unknown is left out: never null, never 0 for "unknown".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.contract.states import Phase

BEAT_VERSION = 1
MAX_LINE_BYTES = 2048
MAX_ABS = 1e18
READ_CHUNK = 1 << 20
GUARD_BYTES = 256

_PHASES = {phase.value: phase for phase in Phase}
_INTS = ("v", "seq", "rank", "world_size", "attempt")
OPTIONAL_INTS = frozenset({"step", "steps", "skipped_steps", "documents", "pid", "start_time"})
OPTIONAL_FLOATS = frozenset(
    {
        "loss", "lr", "grad_norm", "toks_per_s", "step_time_s", "dt_fetch_s", "fetch_p50_s", "fetch_p95_s",
        "gpu_mem_alloc", "gpu_mem_reserved", "mfu", "eval_loss", "epoch", "gate_entropy_mean",
        "gate_max_gate", "gate_collapse_frac",
    }
)  # fmt: skip
OPTIONAL_TEXT = frozenset({"run", "boot_id", "pod", "data_source"})


@dataclass(frozen=True)
class Beat:
    """One good line. `fields` holds the optional ones that were present and well-formed."""

    seq: int
    ts: float
    msg: Phase
    rank: int
    world_size: int
    attempt: int
    fields: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        return self.fields.get(name)


def _is_int(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    # NaN and infinities are kept: a NaN loss is news, not a bad line
    if type(value) is float:
        return abs(value) <= MAX_ABS or not math.isfinite(value)
    return type(value) is int and abs(value) <= MAX_ABS  # `isfinite` itself fails on an int of 400 digits


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("duplicate key")
    return row


_FAST = json.JSONDecoder()
_CAREFUL = json.JSONDecoder(object_pairs_hook=_no_duplicates)


def _row(line: bytes) -> Any:
    """The JSON value of `line`; ValueError for none, and for a key that is there twice."""
    row = _FAST.decode(line.decode())
    if type(row) is dict and line.count(b":") != len(row):  # a colon in a text, or a key that is there twice
        return _CAREFUL.decode(line.decode())
    return row


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= 256


def _is_shares(value: Any) -> bool:
    return type(value) is list and len(value) == 3 and all(_is_number(x) for x in value)


_WELL_FORMED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(OPTIONAL_FLOATS, _is_number),
    **dict.fromkeys(OPTIONAL_INTS, _is_int),
    **dict.fromkeys(OPTIONAL_TEXT, _is_text),
    "gate_branch_shares": _is_shares,
}


def parse_beat(line: bytes) -> Beat | None:
    """The beat in `line` (with or without its newline), or None when it is none of this version."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        row = _row(line)
    except (ValueError, RecursionError):
        return None
    if type(row) is not dict or row.get("v") != BEAT_VERSION:
        return None
    msg = row.get("msg")
    phase = _PHASES.get(msg) if type(msg) is str else None
    if phase is None:
        return None
    ts = row.get("ts")
    if not isinstance(ts, int | float) or not _is_number(ts) or not math.isfinite(ts):
        return None
    for name in _INTS:
        if not _is_int(row.get(name)):
            return None
    fields = {k: v for k, v in row.items() if k in _WELL_FORMED and _WELL_FORMED[k](v)}
    return Beat(row["seq"], float(ts), phase, row["rank"], row["world_size"], row["attempt"], fields)


@dataclass
class BeatReader:
    """Reads one rank's heartbeat file from where it stopped last.

    Keeps (inode, offset, hash of the last 256 bytes: a whole line, `seq` and `ts` included); when they no longer match
    (truncated, replaced) it starts over.
    Memory is bounded by one chunk; a line longer than `MAX_LINE_BYTES` is skipped and counted.
    """

    path: Path
    rank: int
    bad: int = 0
    offset: int = 0
    _inode: int = -1
    _guard: bytes = b""

    def read(self, max_bytes: int = 16 * READ_CHUNK) -> list[Beat]:
        """Good beats of this rank that were completed since the last call, oldest first."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                return []
            if st.st_ino != self._inode or st.st_size < self.offset or self._digest(fd) != self._guard:
                self._inode, self.offset, self._guard = st.st_ino, 0, self._digest_at(fd, 0)
            beats: list[Beat] = []
            end = min(st.st_size, self.offset + max_bytes)
            while self.offset < end and self._read_chunk(fd, beats):
                pass
            self._guard = self._digest(fd)
            return beats
        finally:
            os.close(fd)

    def stream(self, max_bytes: int | None = None) -> Iterator[Beat]:
        """As `read`, for any number of them: a chunk of the file is in memory at a time. None: up to its end."""
        left = max_bytes
        while left is None or left > 0:
            before = self.offset
            yield from self.read(READ_CHUNK)
            if self.offset <= before:
                return
            left = None if left is None else left - (self.offset - before)

    def skip_to_tail(self, keep_bytes: int = 65536) -> None:
        """Start near the end of the file: for a reader that only wants the newest beats."""
        fd = -1
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            st = os.fstat(fd)
            start = max(0, st.st_size - keep_bytes)
            if start:
                cut = os.pread(fd, keep_bytes, start).find(b"\n")
                start = st.st_size if cut < 0 else start + cut + 1
            self._inode, self.offset, self._guard = st.st_ino, start, self._digest_at(fd, start)
        except OSError:
            return
        finally:
            if fd >= 0:
                os.close(fd)

    def _read_chunk(self, fd: int, beats: list[Beat]) -> bool:
        data = os.pread(fd, READ_CHUNK, self.offset)
        cut = data.rfind(b"\n") + 1
        if not cut:
            if len(data) < READ_CHUNK:
                return False  # a line still being written
            self.offset += len(data)  # a line without end: drop what was read of it
            self.bad += 1
            return True
        for line in data[:cut].split(b"\n")[:-1]:
            beat = parse_beat(line) if line else None
            if beat is not None and beat.rank == self.rank:
                beats.append(beat)
            elif line:
                self.bad += 1
        self.offset += cut
        return True

    def _digest(self, fd: int) -> bytes:
        return self._digest_at(fd, self.offset)

    @staticmethod
    def _digest_at(fd: int, offset: int) -> bytes:
        start = max(0, offset - GUARD_BYTES)
        return hashlib.sha256(os.pread(fd, offset - start, start)).digest()
