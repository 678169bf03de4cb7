"""Prepared shards as a corpus: mapped into memory, any window of tokens in microseconds. Writes nothing beside them.

Sizes are checked each time. Hashes are checked when a file is first used on this machine, and again whenever its size
or time has changed; that they were is remembered in `$ORCH_HOME/cache/prepared`. Of several ranks that start at once
one hashes and the others wait. Called by the source `prepared` and by `orch data check`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from workloads.contract.errors import IntegrityError, LocalError, SpecError
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.rundir import OrchHome
from workloads.data.shardfiles import Index, read_index
from workloads.data.tokenizers import Ids, fingerprint_of

HASHERS = 8
Stamp = list[int]
"""What changes when a file does: size, mtime in ns, inode, device."""


class ShardedTokens:
    """The tokens of all shards in their order, as one sequence."""

    def __init__(self, shards: Sequence[Ids]) -> None:
        self._shards = shards
        self._ends = list(accumulate(len(s) for s in shards))
        self.dtype = shards[0].dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, window: slice) -> Ids:
        """A copy of `window` (step 1)."""
        start, stop, step = window.indices(len(self))
        if step != 1:
            raise ValueError("windows have step 1")
        parts = []
        for k in range(bisect_right(self._ends, start), len(self._shards)):
            first = self._ends[k] - len(self._shards[k])
            if first >= stop:
                break
            parts.append(self._shards[k][max(0, start - first) : stop - first])
        return np.concatenate([np.empty(0, self.dtype), *parts]).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Prepared:
    """A corpus of prepared shards: tokens below `vocab`, every document followed by `end_id`."""

    tokens: ShardedTokens
    name: str
    fingerprint: str
    vocab: int
    end_id: int
    index: Index
    folder: Path

    @property
    def left_out(self) -> Mapping[str, int]:
        """Unknown: that was settled when it was prepared."""
        return {}

    def starts(self) -> Iterator[int]:
        """Where each document begins in `tokens`."""
        base = 0
        for row in self.index.shards:
            yield from (base + np.fromfile(self.folder / f"{row.name}.idx", dtype="<u8")[:-1].astype(np.int64)).tolist()
            base += row.tokens


def load_prepared(
    path: str | Path, tokenizer: str | None = None, *, seq_len: int = 0, verify: bool = False
) -> Prepared:
    """The corpus in a folder that `orch data prepare` made.

    tokenizer: `data.tokenizer` of the job; SpecError when the shards hold other ids. seq_len: LocalError when there
    are too few tokens for a sample of it. verify: hash every file now. IntegrityError, with its name, for a shard that
    is missing, cut or damaged.
    """
    folder = Path(path).expanduser().absolute()
    index = read_index(folder)
    if tokenizer is not None and fingerprint_of(tokenizer) != index.tokenizer_fingerprint:
        raise SpecError(
            "E-DATA-032", "data.tokenizer: the shards were prepared with another one", where=str(folder),
            value=tokenizer, expected=f"{index.tokenizer}, fingerprint {index.tokenizer_fingerprint[:16]}",
            fix=f"data.tokenizer: {index.tokenizer}",
        )  # fmt: skip
    if index.tokens <= seq_len:
        raise LocalError(
            "E-DATA-002", f"the corpus has {index.tokens} tokens, one sample needs {seq_len + 1}", where=str(folder),
            fix="prepare more text, or set a smaller data.seq_len",
        )  # fmt: skip
    check_sizes(folder, index)
    ensure_verified(folder, index, anew=verify)
    shards = [np.memmap(folder / f"{r.name}.bin", dtype=index.disk_dtype, mode="r") for r in index.shards]
    return Prepared(
        ShardedTokens(shards), "prepared", index.fingerprint, index.vocab, index.end_id, index, folder
    )  # fmt: skip


def check_sizes(folder: Path, index: Index) -> None:
    for name, size in index.sizes().items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as e:
            raise _damaged(path, e.strerror or "it cannot be read", f"{size} bytes", "none") from e
        if found != size:
            raise _damaged(path, "its size is wrong", f"{size} bytes", f"{found} bytes")


def ensure_verified(folder: Path, index: Index, *, anew: bool = False) -> int:
    """Hash the files that were not, with their present size and time; how many were. IntegrityError for a damaged
    one. Several processes at once: one does it."""
    marker = _marker(folder, index)
    with _alone(marker) as writable:
        known = {} if anew else (try_read_json(marker) or {}).get("files", {})
        now = {name: _stamp(folder / name) for name in index.sizes()}
        todo = {name: value for name, value in index.hashes().items() if known.get(name) != now[name]}
        _hash_all(folder, todo)
        if todo and writable:
            with contextlib.suppress(OSError):  # a full disk costs the next start the hashing
                atomic_write_json(marker, {"v": 1, "folder": str(folder), "files": now}, durable=False)
    return len(todo)


def _hash_all(folder: Path, wanted: Mapping[str, str]) -> None:
    threads = min(HASHERS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads, thread_name_prefix="orch-hash") as pool:
        found = pool.map(lambda name: sha256_of(folder / name), wanted)
        for (name, value), digest in zip(wanted.items(), found, strict=True):
            if digest != value:
                pool.shutdown(wait=True, cancel_futures=True)
                raise _damaged(folder / name, "its bytes are not those that were written", value, digest)


def sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise LocalError("E-DATA-034", f"a shard cannot be read: {e.strerror}", where=str(path)) from e


def _marker(folder: Path, index: Index) -> Path:
    key = hashlib.sha256(f"{folder}\0{index.fingerprint}".encode()).hexdigest()[:32]
    return OrchHome.from_env().cache / "prepared" / f"{key}.json"


@contextlib.contextmanager
def _alone(marker: Path) -> Iterator[bool]:
    """Hold the marker's lock; False where no file can be made, and so nothing be remembered."""
    try:
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(marker.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # its holder hashes and ends, or dies and lets go
        yield True
    finally:
        os.close(fd)


def _stamp(path: Path) -> Stamp:
    st = path.stat()
    return [st.st_size, st.st_mtime_ns, st.st_ino, st.st_dev]


def _damaged(path: Path, why: str, expected: str, value: Any) -> IntegrityError:
    return IntegrityError(
        "E-DATA-033", f"prepared shard {path.name} must not be used: {why}", where=str(path), value=value,
        expected=expected, fix="copy the folder again, or prepare it again into another one",
    )  # fmt: skip
