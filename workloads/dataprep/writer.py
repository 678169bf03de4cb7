"""One shard, written as its documents come: hashed while it is written, whole or not there. Memory is bounded.

`shard_00003.bin` and `.idx` get their names once they are synced, and `shard_00003.json` after them: a part counts as
done when that row is there. What a killed writer left has other names and is written anew. Called by
`workloads.dataprep.pool`, in its workers.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from workloads.contract.files import atomic_write_json, fsync_dir, try_read_json
from workloads.data.shardfiles import DTYPES, OFFSET_BYTES, ShardRow, shard_name
from workloads.data.tokenizers import Ids

BUFFER_BYTES = 1 << 20
HALF = ".half"


class HashedFile:
    """Bytes to `path` + `.half`, and their sha256; `finish` syncs them and gives them their name."""

    def __init__(self, path: Path) -> None:
        self._path, self._half = path, path.with_name(path.name + HALF)
        self._file = self._half.open("wb", buffering=BUFFER_BYTES)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._half.replace(self._path)
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()


class ShardWriter:
    """`with ShardWriter(...) as w: w.add(ids); w.end(); ...; w.finish()`. OSError when the disk takes no more."""

    def __init__(self, folder: Path, part: int, dtype: str, end_id: int) -> None:
        self.folder, self.name = folder, shard_name(part)
        self._dtype = np.dtype(DTYPES[dtype])
        self._end = np.array([end_id], dtype=self._dtype).tobytes()
        self._bin, self._idx = HashedFile(folder / f"{self.name}.bin"), HashedFile(folder / f"{self.name}.idx")
        self.tokens = self.documents = 0
        self._within = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bin.close()
        self._idx.close()

    def add(self, ids: Ids) -> None:
        """Tokens of the document that is open; the first of them opens it."""
        self._open()
        self._bin.write(ids.astype(self._dtype, copy=False).tobytes())
        self.tokens += len(ids)

    def end(self) -> None:
        """The document is whole."""
        self._open()
        self._bin.write(self._end)
        self.tokens += 1
        self._within = False

    def _open(self) -> None:
        if not self._within:
            self._offset()
            self.documents += 1
            self._within = True

    def _offset(self) -> None:
        self._idx.write(self.tokens.to_bytes(OFFSET_BYTES, "little"))

    def finish(self, units: int) -> dict[str, Any]:
        """The row of this part, once its files are safe. A part without documents has a row and no shard.

        units: how much of the source was read for it.
        """
        assert not self._within, "a document is open"
        self._offset()
        row = {
            "name": self.name, "tokens": self.tokens, "documents": self.documents, "sha256": self._bin.finish(),
            "idx_sha256": self._idx.finish(), "units": units,
        }  # fmt: skip
        fsync_dir(self.folder)
        atomic_write_json(self.folder / f"{self.name}.json", row)
        return row


def done_row(folder: Path, part: int, itemsize: int) -> dict[str, Any] | None:
    """The row of a part that was finished earlier and whose files have their sizes; None: it is to be made."""
    name = shard_name(part)
    row = try_read_json(folder / f"{name}.json")
    if row is None:
        return None
    try:
        sizes = {"bin": row["tokens"] * itemsize, "idx": (row["documents"] + 1) * OFFSET_BYTES}
        good = (
            row["name"] == name
            and type(row["units"]) is int
            and all((folder / f"{name}.{kind}").stat().st_size == size for kind, size in sizes.items())
        )
    except (OSError, KeyError, TypeError):
        return None
    return row if good else None


def shard_rows(rows: list[dict[str, Any]]) -> list[ShardRow]:
    """The shards of these parts; a part that held nothing is none."""
    keys = ("name", "tokens", "documents", "sha256", "idx_sha256")
    return [ShardRow(**{key: row[key] for key in keys}) for row in rows if row["tokens"]]
