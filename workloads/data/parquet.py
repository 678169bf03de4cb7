"""Parquet files as blocks: row groups, or equal parts of them where they are few or large.

Only the text column is read. A row whose text is null, empty or no UTF-8 is left out and told by file and row. Files
that are no Parquet, or lack the column, are refused when the source is opened. Called by `workloads.data.opening`.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias, overload

from workloads.contract.errors import LocalError, SpecError
from workloads.data.asked import Once, at_once
from workloads.data.blocks import LeftOut
from workloads.data.files import DataFile, fingerprint
from workloads.data.reading import Patience

ENDINGS = (".parquet",)
BLOCKS_A_SHARD = 2
MAX_BLOCK_BYTES = 16 << 20
"""of text in one block: V of them may lie in memory at once"""
CACHE_BYTES = 32 << 20
"""of row groups kept for their other parts, at least one: more would touch new memory at every read of a resume"""
FOOTER_THREADS = 16


Footer: TypeAlias = tuple[int, int, int]
"""of a row group: rows, rows of the file before it, bytes of text"""


@dataclass(frozen=True)
class _Group:
    """A row group of a file, cut in `parts` blocks."""

    file: int
    group: int
    rows: int
    before: int
    """rows of the file before it"""
    size: int
    parts: int


class ParquetRows:
    """A `BlockSource`. SourceGone when a file cannot be read, SpecError for one without the column or no Parquet."""

    def __init__(
        self, name: str, files: Sequence[DataFile], *, text_field: str, shards: int, patience: Patience, ahead: int = 1,
        once: Once = at_once,
    ) -> None:  # fmt: skip
        self.name, self.ahead, self.left_out = name, ahead, LeftOut(name)
        self._files, self._field = [f for f in files if f.size], text_field
        self.fingerprint = patience.call(partial(fingerprint, files), name, "the first look at its files")
        footers = once(partial(self._ask, patience), partial(_footers, len(self._files)))
        groups = sum(len(one) for one in footers)
        least = -(-shards * BLOCKS_A_SHARD // max(1, groups))
        self._groups = [
            _Group(n, g, rows, before, size, min(rows, max(least, -(-size // MAX_BLOCK_BYTES))))
            for n, one in enumerate(footers)
            for g, (rows, before, size) in enumerate(one)
            if rows
        ]
        self._ends = list(accumulate(g.parts for g in self._groups))
        self.blocks = self._ends[-1] if self._ends else 0
        self._cache: OrderedDict[int, Any] = OrderedDict()  # decoded row groups of which other blocks will want parts
        self._lock = threading.Lock()
        self._local = threading.local()

    def _ask(self, patience: Patience) -> list[list[Footer]]:
        """Of each file, its row groups."""
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            asked = pool.map(lambda f: patience.call(partial(_footer, f, self._field), self.name, f.name), self._files)
            return list(asked)

    def where(self, block: int) -> str:
        n, first, _ = self._rows(block)
        return f"{self._files[self._groups[n].file].name} from row {self._groups[n].before + first}"

    def read(self, block: int) -> Sequence[str | None]:
        n, first, last = self._rows(block)
        group = self._groups[n]
        values = self._column(n, group).slice(first, last - first).combine_chunks()
        if group.parts > 1:
            values = _copied(values)  # a slice would keep the whole row group in memory
        document = partial(self._document, self._files[group.file].name, group.before + first)
        return _Rows(values, document)

    def _rows(self, block: int) -> tuple[int, int, int]:
        """(row group, first and last row in it)."""
        n = bisect_right(self._ends, block)
        group = self._groups[n]
        part = block - (self._ends[n - 1] if n else 0)
        return n, part * group.rows // group.parts, (part + 1) * group.rows // group.parts

    def _document(self, file: str, first: int, place: int, raw: bytes | None) -> str | None:
        row = first + place
        why = f"{self._field!r} is null" if raw is None else "" if raw else f"{self._field!r} is empty"
        text: str | None = None
        if raw:
            try:
                text = raw.decode()
            except UnicodeDecodeError as e:
                why = f"no UTF-8: {e.reason} at byte {e.start} of the text"
        if why:
            self.left_out.note(file, row, why, lambda: f"{file}: row {row}")
        return text

    def _column(self, n: int, group: _Group) -> Any:
        """The text of a row group as Arrow's binary. Decoded once for blocks that are read one after the other."""
        with self._lock:
            if n in self._cache:
                self._cache.move_to_end(n)
                return self._cache[n]
        column = _read_group(self._files[group.file], group.group, self._field, group.rows)
        if group.parts > 1:
            with self._lock:
                self._cache[n] = column
                while len(self._cache) > 1 and sum(self._groups[k].size for k in self._cache) > CACHE_BYTES:
                    self._cache.popitem(last=False)
        return column


def _copied(values: Any) -> Any:
    import pyarrow as pa

    return values.take(pa.array(range(len(values)), pa.int64()))


class _Rows(Sequence[str | None]):
    """Rows that become text when they are asked for: a block's documents lie in memory as Arrow's bytes."""

    def __init__(self, values: Any, document: Callable[[int, bytes | None], str | None]) -> None:
        self._values, self._document = values, document

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, place: int) -> str | None: ...

    @overload
    def __getitem__(self, place: slice) -> list[str | None]: ...

    def __getitem__(self, place: int | slice) -> str | list[str | None] | None:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._document(place, self._values[place].as_py())


def preload() -> None:
    """Import pyarrow now. LocalError when it is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as e:
        raise LocalError(
            "E-DATA-013", "Parquet needs the package pyarrow", where=sys.executable,
            fix=f"{sys.executable} -m pip install pyarrow",
        ) from e  # fmt: skip


def _read_group(file: DataFile, group: int, field: str, rows: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open() as f, pq.ParquetFile(f, pre_buffer=True) as reader:
        column = reader.read_row_group(group, columns=[field], use_threads=False).column(0)
    if len(column) != rows:
        raise OSError(f"{file.name}: row group {group} has {len(column)} rows, and had {rows}")
    return column.cast(pa.large_binary())


def _footers(files: int, row: Any) -> list[list[Footer]]:
    """ValueError for what is not as `_ask` gives it."""
    if not isinstance(row, list) or len(row) != files or not all(isinstance(one, list) for one in row):
        raise ValueError("no row groups")
    found = [[(int(rows), int(before), int(size)) for rows, before, size in one] for one in row]
    if any(n < 0 for one in found for group in one for n in group):
        raise ValueError("no row groups")
    return found


def _footer(file: DataFile, field: str) -> list[Footer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open() as f, pq.ParquetFile(f) as reader:
            meta, schema = reader.metadata, reader.schema_arrow
    except pa.ArrowInvalid as e:
        raise SpecError(
            "E-DATA-004", f"this is no whole Parquet file: {str(e).splitlines()[0]}", where=file.name,
            fix="fetch the file again, or take it out of data.path",
        ) from e  # fmt: skip
    _check_column(schema, field, file.name)
    names = [meta.schema.column(i).path for i in range(meta.num_columns)]
    place, before, found = names.index(field), 0, []
    for g in range(meta.num_row_groups):
        row_group = meta.row_group(g)
        found.append((row_group.num_rows, before, int(row_group.column(place).total_uncompressed_size)))
        before += row_group.num_rows
    return found


def _check_column(schema: Any, field: str, where: str) -> None:
    import difflib

    import pyarrow as pa

    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if field not in texts:
        kind = f" (it is {schema.field(field).type})" if field in schema.names else ""
        near = difflib.get_close_matches(field, texts, 1)
        raise SpecError(
            "E-DATA-005", f"no column of text is called {field!r}{kind}", where=where, value=field,
            expected=f"one of {', '.join(texts)}" if texts else "a column of strings",
            did_you_mean=near[0] if near else None, fix=f"data.text_field: {(near or texts or ['text'])[0]}",
        )  # fmt: skip
