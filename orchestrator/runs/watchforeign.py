"""Heartbeat files and training.csv of scripts that are not orch's: any bytes give beats or counted bad lines.

A line of orch's own is taken as it is. Any other JSON object counts when it tells a step, a loss, tokens/s or what it
does; times in seconds, milliseconds or ISO, figures as text, and the usual other names are understood. What has no
rank is of the file's rank, what has no time has none (0). Called by `watchdir`.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from workloads.contract.beats import MAX_ABS, OPTIONAL_FLOATS, OPTIONAL_INTS, READ_CHUNK, Beat, BeatReader, parse_beat
from workloads.contract.states import Phase

MAX_LINE_BYTES = 64 << 10
ATTEMPT = 0  # a foreign directory knows none: a restart there is one more step back
_MILLISECONDS = 1e11
_NAMES: Mapping[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "iter"),
    "loss": ("loss", "train_loss"),
    "toks_per_s": ("toks_per_s", "tokens_per_s", "tok_per_s", "tokens_per_sec"),
    "grad_norm": ("grad_norm", "gnorm"),
    "dt_fetch_s": ("dt_fetch_s",),
    "step_time_s": ("step_time_s", "step_s"),
    "pid": ("pid",),
    "steps": ("steps", "total_steps"),
}
_TIMES = ("ts", "time", "timestamp", "unix_time", "iso")
_WORDS = ("msg", "phase", "event", "status")
_TELLING = frozenset({"step", "loss", "toks_per_s", "grad_norm"})
_PHASES = {p.value: p for p in Phase} | {
    "boot": Phase.STARTING, "init": Phase.STARTING, "start": Phase.STARTING, "compile": Phase.COMPILING,
    "eval": Phase.EVALUATING, "checkpoint": Phase.CHECKPOINTING, "saving": Phase.CHECKPOINTING,
    "finished": Phase.DONE, "complete": Phase.DONE, "completed": Phase.DONE, "end": Phase.DONE,
}  # fmt: skip


def parse_foreign(line: bytes, rank: int, seq: int) -> Beat | None:
    """The beat in `line`, as one of `ATTEMPT`; None for what is none, or another rank's."""
    own = parse_beat(line)
    if own is not None:
        return replace(own, attempt=ATTEMPT) if own.rank == rank else None
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return beat_of(row, rank, seq) if isinstance(row, dict) else None


def beat_of(row: Mapping[str, Any], rank: int, seq: int) -> Beat | None:
    """A row of somebody's heartbeat or CSV as a beat; None where it tells nothing of a training."""
    if _number(row.get("rank", rank)) != rank:
        return None
    fields = _fields(row)
    word = next((str(row[k]).lower() for k in _WORDS if isinstance(row.get(k), str)), None)
    phase = _PHASES.get(word or "")
    if phase is None and not _TELLING & fields.keys():
        return None
    phase = phase or Phase.PROGRESS
    return Beat(seq, _time(row), phase, rank, 1, ATTEMPT, fields)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    names = dict(_NAMES) | {n: (n,) for n in OPTIONAL_FLOATS - _NAMES.keys()}
    found: dict[str, Any] = {}
    for name, others in names.items():
        value = next((v for k in others if (v := _number(row.get(k))) is not None), None)
        if value is None:
            continue
        if name in OPTIONAL_INTS:
            if 0 <= value < 1 << 53 and value == int(value):
                found[name] = int(value)
        else:
            found[name] = value
    return found


def _number(value: Any) -> float | None:
    """A number, also as text; NaN and infinities are news."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if not isinstance(value, str) or len(value) <= 64 else None
    except (ValueError, OverflowError):
        return None
    return None if number is None or (math.isfinite(number) and abs(number) > MAX_ABS) else number


def _time(row: Mapping[str, Any]) -> float:
    for name in _TIMES:
        value = row.get(name)
        number = _number(value)
        if number is not None and math.isfinite(number) and number > 0:
            return number / 1000.0 if number > _MILLISECONDS else number
        if isinstance(value, str) and len(value) <= 64:
            try:
                return datetime.fromisoformat(value).timestamp()
            except (ValueError, OverflowError, OSError):
                continue
    return 0.0


class ForeignReader(BeatReader):
    """A `BeatReader` of lines in any format."""

    _seq = 0

    def _read_chunk(self, fd: int, beats: list[Beat]) -> bool:
        data = os.pread(fd, READ_CHUNK, self.offset)
        cut = data.rfind(b"\n") + 1
        if not cut:
            if len(data) < READ_CHUNK:
                return False  # a line still being written
            self.offset += len(data)
            self.bad += 1
            return True
        for line in data[:cut].split(b"\n")[:-1]:
            beat = parse_foreign(line, self.rank, self._seq) if line.strip() else None
            if beat is not None:
                self._seq += 1
                beats.append(beat)
            elif line.strip():
                self.bad += 1
        self.offset += cut
        return True


@dataclass
class CsvReader:
    """training.csv of rank 0, for a script that writes no heartbeats: a beat a row."""

    path: Path
    bad: int = 0
    _names: list[str] = field(default_factory=list)
    _offset: int = 0
    _inode: int = -1
    _seq: int = 0

    def read(self) -> list[Beat]:
        """Beats of the rows that were completed since the last call."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        try:
            st = os.fstat(fd)
            if st.st_ino != self._inode or st.st_size < self._offset:
                self._inode, self._offset, self._names = st.st_ino, 0, []
            if not self._names:
                head = os.pread(fd, MAX_LINE_BYTES, 0)
                cut = head.find(b"\n") + 1
                self._names = _cells(head[:cut])
                self._offset = max(cut, st.st_size - MAX_LINE_BYTES)  # old rows are told by nobody
            data = os.pread(fd, READ_CHUNK, self._offset)
        except OSError:
            return []
        finally:
            os.close(fd)
        cut = data.rfind(b"\n") + 1
        self._offset += cut
        return [beat for line in data[:cut].split(b"\n") if line.strip() and (beat := self._beat(line)) is not None]

    def _beat(self, line: bytes) -> Beat | None:
        cells = _cells(line)
        beat = beat_of(dict(zip(self._names, cells, strict=False)), 0, self._seq) if len(cells) > 1 else None
        self._seq += beat is not None
        self.bad += beat is None
        return beat


def _cells(line: bytes) -> list[str]:
    text = line.decode(errors="replace").replace("\0", "").strip("\r\n")
    try:
        return [c.strip() for c in next(csv.reader([text]), [])]
    except csv.Error:
        return []
