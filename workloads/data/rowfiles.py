"""A data set whose files are not Parquet, read a file after the other from its start: JSON, CSV, text, packed or not.

A place in such a file is found by reading up to it, so its rows keep their order, and a virtual shard owns whole files:
unit u of virtual shard u % V. Where files are fewer than shards, each file is `lanes` units, and lane k has the rows n
with n % lanes == k: every lane reads the whole file. Rows are read by `workloads.data.rowstream`, a chunk at a time,
each with the deadline and tries of `workloads.data.reading`; what no longer answers is left behind with its thread.
Called by `workloads.data.opening`; read through `workloads.data.filecursor`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from workloads.contract.errors import LocalError
from workloads.data.blocks import LeftOut
from workloads.data.files import DataFile, fingerprint
from workloads.data.reading import Patience, start

if TYPE_CHECKING:
    from workloads.data.rowstream import Rows, Served

PACKED = (".gz", ".zst", ".bz2", ".xz")
MODULES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".jsonl": ("json", {}), ".ndjson": ("json", {}), ".json": ("json", {}), ".txt": ("text", {}),
    ".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}),
}  # fmt: skip
"""By the ending, as `datasets` guesses: (its module, options)."""
ENDINGS = tuple(end + packed for end in MODULES for packed in ("", *PACKED))
OPTIONS = frozenset(
    {"sep", "delimiter", "sample_by", "encoding", "field", "quotechar", "escapechar", "names", "header"}
)
"""What a data set's card may say about how its files are parsed."""
CHUNK_ROWS, CHUNK_CHARS = 256, 1 << 20
MUCH_BYTES = 64 << 20
"""of files that are read by several lanes: worth a warning"""


@dataclass(frozen=True)
class Kind:
    """A module of `datasets` that parses files, and its options."""

    module: str
    options: Mapping[str, Any] = field(default_factory=dict)


def kind_of(name: str) -> Kind | None:
    """None for what is no such file."""
    plain = next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)
    found = next((told for end, told in MODULES.items() if plain.endswith(end)), None)
    return None if found is None else Kind(*found)


def preload(names: Sequence[str] = ()) -> None:
    """Import `datasets` now: no deadline is meant for it. LocalError when it, or what unpacks `names`, is missing."""
    try:
        import workloads.data.rowstream  # noqa: F401

        if any(name.endswith(".zst") for name in names):
            import zstandard  # noqa: F401
    except ImportError as e:
        raise LocalError(
            "E-DATA-013", f"files that are not Parquet need the packages datasets and zstandard: {e}",
            where=sys.executable, fix=f"{sys.executable} -m pip install datasets zstandard",
        ) from e  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Between two rows of a file. `stream`: the state of `datasets` there, made by `version`; None: at the start."""

    row: int = 0
    version: str = ""
    stream: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Chunk:
    """Rows from one place of a file to another. `texts`: None for what is no document, or another lane's."""

    texts: Sequence[str | None]
    after: Place
    ended: bool


class RowFiles:
    """Documents in files that are read from their start. SourceGone when one cannot be read, SpecError without field.

    `blocks`: units. `ahead`: chunks that may be read at a time before they are asked for.
    """

    def __init__(
        self, name: str, files: Sequence[DataFile], kind: Kind, *, text_field: str, shards: int, patience: Patience,
        ahead: int = 1,
    ) -> None:  # fmt: skip
        self.files = [f for f in files if f.size]
        preload([f.name for f in self.files])
        self.name, self.kind, self.field, self.patience = name, kind, text_field, patience
        self.left_out = LeftOut(name)
        self.lanes = max(1, -(-shards // max(1, len(self.files))))
        self.blocks = len(self.files) * self.lanes
        self.fingerprint = patience.call(partial(fingerprint, files), name, "the first look at its files")
        self.permits = threading.BoundedSemaphore(ahead)
        total = sum(f.size for f in self.files)
        if self.lanes > 1 and total > MUCH_BYTES:
            print(
                f"warning: data: {name}: {total >> 20} MiB in {len(self.files)} files for {shards} virtual shards are "
                f"read {self.lanes} times an epoch; fewer data.shards read less, `orch data prepare` reads once",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def where(self, block: int) -> str:
        return self.files[block // self.lanes].name

    def head(self, block: int) -> Sequence[str | None]:
        """The first documents of a unit."""
        return self.unit(block).chunk(Place()).texts

    def unit(self, block: int) -> UnitReader:
        return UnitReader(self, self.files[block // self.lanes], block % self.lanes, self.lanes)

    def whole(self, file: int) -> UnitReader:
        """All rows of a file."""
        return UnitReader(self, self.files[file], 0, 1)


class UnitReader:
    """Chunks of one lane of one file, from any place. For one thread; it reads in others."""

    def __init__(self, source: RowFiles, file: DataFile, lane: int, lanes: int) -> None:
        from workloads.data.rowstream import Served

        self._source, self.file, self._lane, self._lanes = source, file, lane, lanes
        self._served: Served = Served(file)
        self._open: Rows | None = None
        self._begun: tuple[Place, Future[tuple[Chunk, Rows]]] | None = None

    @property
    def bytes_read(self) -> int:
        """Of the file, packed as it is; what is read again counts again."""
        return self._served.bytes_read

    def ahead(self, at: Place) -> None:
        """Begin to read the chunk at `at`, unless enough is under way."""
        if self._begun is None and self._source.permits.acquire(blocking=False):
            future = start(partial(self._read, at, self._taken(at)))
            future.add_done_callback(lambda _: self._source.permits.release())
            self._begun = (at, future)

    def chunk(self, at: Place) -> Chunk:
        """SourceGone when it cannot be had. A read that goes on is waited for: it may have far to go to `at`."""
        begun, self._begun = self._begun, None
        future = begun[1] if begun is not None and begun[0] == at else None
        first = None if future else self._taken(at)

        def read() -> tuple[Chunk, Rows]:
            nonlocal first
            rows, first = first, None  # a try that was given up keeps it
            return self._read(at, rows)

        found, self._open = self._source.patience.call(
            read, self._source.name, f"{self.file.name} at row {at.row}", future, lambda: self._served.bytes_read
        )
        if found.ended:
            self._open = None  # it has no place any more
        return found

    def _taken(self, at: Place) -> Rows | None:
        rows, self._open = self._open, None
        return rows if rows is not None and rows.place == at else None

    def _read(self, at: Place, rows: Rows | None) -> tuple[Chunk, Rows]:
        from workloads.data.rowstream import Rows

        source = self._source
        if rows is None:
            rows = Rows(self._served, source.kind.module, source.kind.options, source.field, at)
        values, ended = rows.take(CHUNK_ROWS, CHUNK_CHARS)
        texts = [self._text(at.row + n, value) for n, value in enumerate(values)]
        return Chunk(texts, rows.place, ended), rows

    def _text(self, row: int, value: object) -> str | None:
        if row % self._lanes != self._lane:
            return None
        if isinstance(value, str) and value:
            return value
        if value == "" and self._source.kind.module == "text":
            return None  # a blank line
        name = self._source.field
        why = (
            f"{name!r} is empty" if value == "" else f"{name!r} is null" if value is None
            else f"{name!r} is no text but {type(value).__name__}"
        )  # fmt: skip
        self._source.left_out.note(self.file.name, row, why, lambda: f"{self.file.name}: row {row}")
        return None
