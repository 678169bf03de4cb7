"""`checkpoints/trouble.jsonl`: what went wrong with checkpoints, a line each, for whoever must tell it.

Rank 0 of a run appends (`workloads.runtime.quarantine`, `workloads.runtime.checkpoint`); the supervisor makes events of
new lines, `orch why` reads them. A line is written before the deed: what it names may not have been done. Standard
library only.
"""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from workloads.contract.files import LineWriter, dump_json
from workloads.contract.rundir import RunDir

MAX_WAITING = 256
MAX_WHY_CHARS = 1000
MAX_LINE_BYTES = 16_384
MAX_READ_BYTES = 4 << 20


class Word(StrEnum):
    REJECTED = "rejected"  # did not verify; lies under the name `kept_as`, or where it was when that is None
    DROPPED = "dropped"  # a rejected one removed: too many of them, or its room was needed
    UNSAVED = "unsaved"  # could not be saved: the first of a row of failures
    SAVED_AGAIN = "saved-again"  # the row of failures is over


@dataclass(frozen=True)
class Trouble:
    """`checkpoint` is a name below checkpoints/, or that of the one which was to be."""

    what: Word
    checkpoint: str
    why: str
    attempt: int
    ts: float
    kept_as: str | None = None
    v: int = 1

    def sentence(self) -> str:
        """`checkpoint step_00000010 was rejected: a.distcp does not match its sha256 (kept as rejected_...)`."""
        kept = f" (kept as {self.kept_as})" if self.kept_as else ""
        words = {
            Word.REJECTED: "was rejected", Word.DROPPED: "was removed", Word.UNSAVED: "could not be saved",
            Word.SAVED_AGAIN: "was saved",
        }  # fmt: skip
        return f"checkpoint {self.checkpoint} {words[self.what]}: {self.why}{kept}"


class TroubleBook:
    """Appends lines; what the disk refuses waits in memory (at most 256 lines) and goes with a later one."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    def write(self, trouble: Trouble) -> None:
        """Never raises OSError: a disk that refuses is no reason to stop."""
        row = {k: v for k, v in asdict(trouble).items() if v is not None}
        self._waiting.append(dump_json({**row, "why": trouble.why[:MAX_WHY_CHARS]}))
        self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        try:
            writer = LineWriter(self._run.checkpoint_trouble)
            try:
                while self._waiting:
                    writer.write(self._waiting[0])
                    self._waiting.popleft()
            finally:
                writer.close()
        except OSError:
            return


def parse_trouble(line: bytes) -> Trouble | None:
    """The line's meaning, or None for a torn, foreign or future one."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        row: dict[str, Any] = json.loads(line)
        if type(row) is not dict or row.get("v") != 1:
            return None
        texts, kept = [row["what"], row["checkpoint"], row["why"]], row.get("kept_as")
        if not all(type(t) is str for t in (*texts, kept or "")) or type(row["attempt"]) is not int:
            return None
        return Trouble(Word(row["what"]), row["checkpoint"], row["why"], row["attempt"], float(row["ts"]), kept)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def read_troubles(run: RunDir, offset: int = 0) -> tuple[list[Trouble], int]:
    """What was added after byte `offset` (whole lines, at most 4 MiB), and the offset to ask with next time.

    ([], offset) when there is nothing or it cannot be read; a file that is shorter than `offset` is read anew.
    """
    try:
        fd = os.open(run.checkpoint_trouble, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            offset = offset if offset <= os.fstat(fd).st_size else 0
            data = os.pread(fd, MAX_READ_BYTES, offset)
        finally:
            os.close(fd)
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if not end and len(data) == MAX_READ_BYTES:
        end = len(data)  # no line of ours is that long
    found = (parse_trouble(line) for line in data[:end].split(b"\n"))
    return [t for t in found if t is not None], offset + end
