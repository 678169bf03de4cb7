"""Rows of one data file through HuggingFace `datasets` in streaming mode, from any place on.

`datasets` unpacks and parses; the bytes come from our own readers (`DataFile.open`, through an fsspec file system that
exists in this process alone), so that deadline, commit, token and a server's "too many" are ours, and no listing, cache
or retry of the library's is in between. No script of a repository is run, nothing is shuffled. Imported by
`workloads.data.rowfiles` once a source needs it: importing `datasets` takes a second or more.
"""

from __future__ import annotations

import io
import itertools
import re
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import datasets
import datasets.config
import fsspec
from fsspec.spec import AbstractFileSystem

from workloads.contract.errors import SpecError
from workloads.data.files import DataFile
from workloads.data.rowfiles import Place

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

VERSION: str = datasets.__version__
PROTOCOL = "orchdata"
PARSE_BYTES = 1 << 20
"""of JSON or text parsed at a time: every virtual shard of a rank has a file open"""
PARSE_ROWS = 1000  # the same of CSV, which counts rows
READ_BYTES = 1 << 20
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_numbers = itertools.count()


class Served:
    """A file that `datasets` may open by `url`, for as long as this object lives. `bytes_read`: of it, so far."""

    def __init__(self, file: DataFile) -> None:
        self.file, self.bytes_read = file, 0
        key = str(next(_numbers))
        self.url = f"{PROTOCOL}://{key}/{_ODD.sub('_', file.name.rpartition('/')[2])}"
        _served[key] = self


_served: weakref.WeakValueDictionary[str, Served] = weakref.WeakValueDictionary()


class _Files(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    protocol = PROTOCOL
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        one = self._one(path)
        return {"name": self._strip_protocol(path), "size": one.file.size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        row = self.info(path)
        return [row] if detail else [row["name"]]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        if mode != "rb":
            raise OSError("files of a data set are only read")
        one = self._one(path)
        return io.BufferedReader(_Counted(one), READ_BYTES)

    def _one(self, path: str) -> Served:
        one = _served.get(str(self._strip_protocol(path)).split("/", 1)[0])
        if one is None:
            raise FileNotFoundError(path)
        return one


class _Counted(io.RawIOBase):
    """The bytes of a file; OSError where it ends before its size, which would else be a file that is shorter."""

    def __init__(self, served: Served) -> None:
        self._served, self._raw = served, served.file.open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._raw.read(len(view))
        if not data and len(view) and (at := self._raw.tell()) < (size := self._served.file.size):
            raise OSError(f"the file ends at byte {at}, before byte {size}: it was cut")
        view[: len(data)] = data
        self._served.bytes_read += len(data)
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


fsspec.register_implementation(PROTOCOL, _Files, clobber=True)
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request to the outside for each file that is opened


class Rows:
    """One file, read from `place` on. Errors are those of `datasets`, of what it parses with, and OSError."""

    def __init__(self, served: Served, module: str, options: Mapping[str, Any], field: str, place: Place) -> None:
        self.place, self._field, self._name = place, field, served.file.name
        size = {"csv": {"chunksize": PARSE_ROWS}}.get(module, {"chunksize": PARSE_BYTES})
        stream = datasets.load_dataset(
            module, data_files={"train": [served.url]}, split="train", streaming=True, **{**size, **options}
        )
        if stream.features is not None:
            self._check(stream.features)
            stream = stream.select_columns([field])
        known = place.stream is not None and place.version == VERSION
        self._skipped = place.row > 0 and not known
        if place.stream is not None and known:
            stream.load_state_dict(dict(place.stream))
        elif self._skipped:
            stream = stream.skip(place.row)  # another version's state may mean something else; rows are rows
        self._stream, self._rows = stream, iter(stream)

    def take(self, rows: int, chars: int) -> tuple[list[Any], bool]:
        """The field's values in the next rows, about so many; and whether these are the last. Moves `place`.

        The state is asked for behind a row that was read: before the first, `datasets` would give that of the start.
        """
        found: list[Any] = []
        while len(found) < rows and chars > 0:
            row = next(self._rows, None)
            if row is None:
                return found, True
            if not found and not self.place.row:
                self._check(row)
            value = row.get(self._field)
            found.append(value)
            chars -= len(value) if isinstance(value, str) else 1
        state = None if self._skipped else self._stream.state_dict()  # of one that skips, it would say so too
        self.place = Place(self.place.row + len(found), VERSION, state)
        return found, False

    def _check(self, columns: Mapping[str, Any]) -> None:
        if self._field in columns:
            return
        names = [str(name) for name in columns]
        raise SpecError(
            "E-DATA-005", f"no column of text is called {self._field!r}", where=self._name, value=self._field,
            expected=f"one of {', '.join(names)[:200]}" if names else "a column of strings",
            fix=f"data.text_field: {(names or ['text'])[0]}",
        )  # fmt: skip
