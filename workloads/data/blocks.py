"""What a stream of documents is read from: numbered blocks, each read whole, and a book of what was left out.

A block is a row group of a Parquet file (or rows of it), or the lines that begin in a byte range. Virtual shard v of V
owns the blocks b with b % V == v. Nothing here shuffles. Implemented by `workloads.data.jsonl` and
`workloads.data.parquet`; read through `workloads.data.reading`.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

TOLD = 5
MAX_KNOWN = 100_000
MAX_REASONS = 20


class SourceGone(Exception):
    """A source stopped giving data: unreadable, silent or refused. A restart, or another source, may help."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"the data source {source} is gone: {why}")
        self.source, self.why = source, why


class LeftOut:
    """Counts documents that could not be used, tells the first five by name and then every tenfold. Thread-safe."""

    def __init__(self, source: str) -> None:
        self._source, self._lock = source, threading.Lock()
        self._known: set[tuple[str, int]] = set()
        self.count = 0
        self.first: list[str] = []
        self._reasons: dict[str, int] = {}

    def note(self, file: str, place: int, why: str, name: Callable[[], str]) -> None:
        """`place` tells documents of a file apart; `name` says which it is, and is asked for few of them.

        The same one again, in a later epoch, is not counted again.
        """
        with self._lock:
            if (file, place) in self._known or len(self._known) >= MAX_KNOWN:
                return
            self._known.add((file, place))
            self.count += 1
            reason = _in_short(why)
            if reason not in self._reasons and len(self._reasons) == MAX_REASONS:
                reason = "other reasons"
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
            if self.count <= TOLD:
                self.first.append(f"{name()}: {why}")
                self._say(f"a document is left out: {self.first[-1]}")
            elif str(self.count).strip("0") == "1":
                self._say(f"{self.count} documents are left out so far, the latest {name()}: {why}")

    @property
    def reasons(self) -> dict[str, int]:
        """Why, without what tells one document from another, and how many."""
        with self._lock:
            return dict(self._reasons)

    def _say(self, text: str) -> None:
        print(f"warning: data: {self._source}: {text}", file=sys.stderr, flush=True)


def _in_short(why: str) -> str:
    """`no field 'text'` of `no field 'text', but id, body`; `no JSON` of `no JSON: Expecting value`."""
    return re.split(r":|,? but ", why, maxsplit=1)[0]


class TextSource(Protocol):
    """Documents in numbered parts."""

    name: str
    fingerprint: str
    blocks: int
    """how many there are"""
    left_out: LeftOut

    def where(self, block: int) -> str:
        """The file and place, for messages."""
        ...


class BlockSource(TextSource, Protocol):
    """Read by several threads at once."""

    ahead: int
    """how many may be read at a time before they are asked for: more where reading is waiting than where it computes"""

    def read(self, block: int) -> Sequence[str | None]:
        """Its documents in the file's order; None for what is none. OSError or ValueError when it cannot be read."""
        ...
