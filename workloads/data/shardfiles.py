"""The folder of prepared shards: its file names and its index. Never opens tokens.

    index.json           v, tokenizer, vocab, dtype, the shards with their hashes, the source; written last
    shard_00000.bin      tokens, little-endian, every document followed by the end token
    shard_00000.idx      uint64, little-endian: where each document begins, and the end of the last one

No document runs over two shards. Called by `workloads.dataprep` (which writes them) and `workloads.data.prepared`
(which reads them).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from workloads.contract.errors import IntegrityError, MissingDataError
from workloads.contract.files import read_bytes_bounded

INDEX = "index.json"
VERSION = 1
MAX_INDEX_BYTES = 64 << 20
OFFSET_BYTES = 8
DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
_STRICT = ConfigDict(extra="ignore", strict=True)


@checked(frozen=True, config=_STRICT)
class ShardRow:
    """One shard: `tokens` and `documents` that begin in it, and the sha256 of its two files."""

    name: str = Field(pattern=r"^shard_\d{5,9}$")
    tokens: int = Field(gt=0)
    documents: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    idx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@checked(frozen=True, config=_STRICT)
class Index:
    tokenizer: str
    tokenizer_fingerprint: str
    vocab: int = Field(gt=0, le=1 << 32)
    end_id: int = Field(ge=0, lt=1 << 32)
    dtype: str = Field(pattern="^(uint8|uint16|uint32)$")
    shards: list[ShardRow] = Field(min_length=1)
    source: dict[str, Any] = field(default_factory=dict)
    v: int = VERSION

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.shards)

    @property
    def documents(self) -> int:
        return sum(row.documents for row in self.shards)

    @property
    def disk_dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        return np.dtype(DTYPES[self.dtype])

    @property
    def fingerprint(self) -> str:
        """sha256 over what determines the tokens and their order; not over where they came from."""
        rows = [[r.name, r.tokens, r.documents, r.sha256, r.idx_sha256] for r in self.shards]
        about = [self.tokenizer_fingerprint, self.dtype, self.end_id, rows]
        return hashlib.sha256(json.dumps(about, separators=(",", ":")).encode()).hexdigest()

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        found: dict[str, int] = {}
        for row in self.shards:
            found[f"{row.name}.bin"] = row.tokens * self.disk_dtype.itemsize
            found[f"{row.name}.idx"] = (row.documents + 1) * OFFSET_BYTES
        return found

    def hashes(self) -> dict[str, str]:
        return {f"{r.name}.bin": r.sha256 for r in self.shards} | {f"{r.name}.idx": r.idx_sha256 for r in self.shards}

    def as_json(self) -> dict[str, Any]:
        return {
            "v": self.v, "tokenizer": self.tokenizer, "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "vocab": self.vocab, "end_id": self.end_id, "dtype": self.dtype, "tokens": self.tokens,
            "documents": self.documents, "source": self.source, "shards": [dict(vars(row)) for row in self.shards],
        }  # fmt: skip


_READER = TypeAdapter(Index)


def shard_name(number: int) -> str:
    return f"shard_{number:05d}"


def number_of(name: str) -> int | None:
    """Of `shard_00003`; None for anything else."""
    m = re.fullmatch(r"shard_(\d{5,9})", name, re.ASCII)
    return int(m[1]) if m else None


def index_of(row: Mapping[str, Any]) -> Index:
    """ValueError for what is no index of this version."""
    if row.get("v") != VERSION:
        raise ValueError(f"version {row.get('v')!r}, and this orch reads {VERSION}")
    try:
        found = _READER.validate_json(json.dumps(row))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    names = [r.name for r in found.shards]
    if len(set(names)) != len(names):
        raise ValueError("it names a shard twice")
    if not found.end_id < found.vocab <= 1 << 8 * found.disk_dtype.itemsize:
        raise ValueError(f"vocab {found.vocab} and end token {found.end_id} do not fit {found.dtype}")
    return found


def read_index(folder: Path) -> Index:
    """MissingDataError when the folder holds no prepared shards, IntegrityError when its index is damaged."""
    path = folder / INDEX
    try:
        row = json.loads(read_bytes_bounded(path, MAX_INDEX_BYTES))
        if not isinstance(row, dict):
            raise ValueError("it holds no object")
        return index_of(row)
    except OSError as e:
        raise MissingDataError(
            "E-DATA-030", f"there are no prepared shards: {e.strerror}", where=str(path),
            expected=f"a folder with {INDEX}, as `orch data prepare` makes it",
            fix=f"bring the folder back, or make it: orch data prepare JOB --tokenizer gpt2 --out {folder}",
        ) from e  # fmt: skip
    except (ValueError, RecursionError) as e:
        raise IntegrityError(
            "E-DATA-031", f"the index of the prepared shards cannot be used: {e}", where=str(path),
            fix="prepare them again, into another folder",
        ) from e  # fmt: skip
