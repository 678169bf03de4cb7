"""Tokenize a source into a folder of shards that is there whole or not at all, however often it is interrupted.

    <out's parent>/.tmp_<out>/    basis.json, the shards so far with a row each; kept when this ends early
    <out>/                        the same folder under its name, index.json in it, once everything is there;
                                  basis.json and .lock go then, or when somebody asks for the same again

The same source, tokenizer and limit give the same bytes whatever the number of workers, and after any kill. Never
writes into a folder that has its name already. Called by `workloads.dataprep.__main__`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads.contract.config.job import DataSpec
from workloads.contract.errors import ConflictError, LocalError, RemoteError, SpecError
from workloads.contract.files import atomic_write_json, fsync_dir, try_read_json
from workloads.contract.rundir import STAGED_PREFIX
from workloads.data.blocks import SourceGone
from workloads.data.prepared import check_sizes
from workloads.data.shardfiles import INDEX, Index, index_of, read_index
from workloads.data.tokenizers import Tokenizer, load_tokenizer, token_dtype
from workloads.dataprep.istext import look_at, samples
from workloads.dataprep.origins import FileOrigin, Origin, open_origin, settled
from workloads.dataprep.pool import AGAIN, DOCUMENTS, TOKENS, UNITS, Work, run_parts, workers_here
from workloads.dataprep.writer import done_row, shard_rows

BASIS, LOCK = "basis.json", ".lock"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """workers: default one a core. max_tokens: of all shards together, about: every part ends with a document."""

    data: DataSpec
    out: Path
    workers: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Progress:
    """documents, tokens: of all attempts. fraction: of the whole, in [0, 1]; None: nobody knows."""

    documents: int
    tokens: int
    fraction: float | None


@dataclass(frozen=True)
class Outcome:
    index: Index
    found: bool  # it was there already
    kept_parts: int  # made by earlier attempts
    parts: int
    workers: int


Tell = Callable[[Progress], None]


def prepare(asked: Asked, tell: Tell, stop: Callable[[], bool]) -> Outcome:
    """The shards of `asked.data` in `asked.out`.

    Raises StoppedError when `stop` said so, SpecError for files that are no text, ConflictError when `out` is something
    else or being made, LocalError for a full disk, RemoteError when the source is gone, other OrchErrors of source and
    tokenizer, RuntimeError when a worker died. What is done is kept.
    """
    tokenizer = load_tokenizer(asked.data.tokenizer)
    try:
        asked = replace(asked, data=settled(asked.data))
        origin = open_origin(asked.data)
    except SourceGone as e:
        raise RemoteError("E-DATA-046", str(e), where=asked.data.path or asked.data.source, fix=AGAIN) from e
    if not origin.parts:
        raise SpecError("E-DATA-043", "the source has no documents", where=asked.data.path or asked.data.source)
    making = _Making(asked, tokenizer, origin)
    try:
        return making.found() or making.make(tell, stop)
    except OSError as e:
        raise LocalError(
            "E-DATA-042", f"the shards cannot be written: {e.strerror or e}", where=e.filename or str(making.staged),
            fix=f"free some space and {AGAIN}",
        ) from e  # fmt: skip


class _Making:
    def __init__(self, asked: Asked, tokenizer: Tokenizer, origin: Origin) -> None:
        self.asked, self.tokenizer, self.origin = asked, tokenizer, origin
        self.staged = asked.out.with_name(STAGED_PREFIX + asked.out.name)
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.basis = {
            "v": 1, "source": origin.name, "origin": origin.fingerprint, "parts": origin.parts,
            "tokenizer": tokenizer.fingerprint, "max_tokens": asked.max_tokens, "text_field": asked.data.text_field,
            "shards": asked.data.shards,  # decides where blocks, and so parts, begin
        }  # fmt: skip

    def found(self) -> Outcome | None:
        """What `out` holds, when it is just this; None when there is no `out`. ConflictError for anything else."""
        out = self.asked.out
        if not (out.exists() or out.is_symlink()):
            return None
        what = "--out is there already, and holds no prepared shards"
        if out.is_dir() and (out / INDEX).exists():
            index = read_index(out)
            if index.source.get("basis") == self.basis:
                check_sizes(out, index)
                _sweep(out)
                return Outcome(index, True, self.origin.parts, self.origin.parts, 0)
            what = "--out holds shards of another source, tokenizer or limit"
        raise ConflictError("E-DATA-044", what, where=str(out), fix=f"--out {out}-2")

    def make(self, tell: Tell, stop: Callable[[], bool]) -> Outcome:
        with _held(self.staged):
            if found := self.found():  # another process ended meanwhile
                return found
            self._start()
            kept, workers = self._rows(), 0
            if (index := self._whole()) is None:
                workers = self._run(kept, tell, stop)
                index = self._index(self._rows())
                atomic_write_json(self.staged / INDEX, index.as_json())
            self._finish(index)
            return Outcome(index, False, len(kept), self.origin.parts, workers)

    def _start(self) -> None:
        """What an earlier attempt left stays when it has the same basis; else nothing of it does."""
        if try_read_json(self.staged / BASIS) == self.basis:
            return
        for entry in self.staged.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        atomic_write_json(self.staged / BASIS, self.basis)

    def _rows(self) -> dict[int, Row]:
        """Of the parts that are done."""
        found = {part: done_row(self.staged, part, self.dtype.itemsize) for part in range(self.origin.parts)}
        return {part: row for part, row in found.items() if row is not None}

    def _whole(self) -> Index | None:
        """The index that an attempt wrote before it was killed."""
        if not (self.staged / INDEX).exists():
            return None
        index = read_index(self.staged)
        check_sizes(self.staged, index)
        return index

    def _run(self, kept: Mapping[int, Row], tell: Tell, stop: Callable[[], bool]) -> int:
        """Make the parts that are not in `kept`; the number of workers."""
        todo = [part for part in range(self.origin.parts) if part not in kept]
        if not todo:
            return 0
        if isinstance(self.origin, FileOrigin):
            look_at(samples(self.origin.files)).refuse(self.asked.data.source, self.asked.data.path)
        before = [sum(int(row[k]) for row in kept.values()) for k in ("documents", "tokens", "units")]
        most, size = self.asked.max_tokens, self.origin.size
        limit = None if most is None else -(-most // self.origin.parts)
        work = Work(self.asked.data, self.staged, self.origin.fingerprint, limit)
        workers = min(workers_here(self.asked.workers), len(todo))

        def told(now: Sequence[int]) -> None:
            done = [a + b for a, b in zip(before, now, strict=True)]
            read = done[UNITS] / size if size else 0.0
            fraction = max(read, done[TOKENS] / most if most else 0.0)
            tell(Progress(done[DOCUMENTS], done[TOKENS], min(fraction, 1.0) if size or most else None))

        run_parts(work, todo, workers, told, stop)
        return workers

    def _index(self, rows: Mapping[int, Row]) -> Index:
        shards = shard_rows([rows[part] for part in range(self.origin.parts)])
        if not shards:
            raise SpecError(
                "E-DATA-043", "the source has no documents", where=self.asked.data.path or self.asked.data.source
            )
        t, data = self.tokenizer, self.asked.data
        source = {"name": self.origin.name, "basis": self.basis}
        source |= {k: v for k, v in data.model_dump(mode="json").items() if k not in ("seq_len", "tokenizer")}
        row = {
            "v": 1, "tokenizer": t.name, "tokenizer_fingerprint": t.fingerprint, "vocab": t.vocab_size,
            "end_id": t.end_id, "dtype": self.dtype.name, "shards": [vars(s) for s in shards], "source": source,
        }  # fmt: skip
        return index_of(row)

    def _finish(self, index: Index) -> None:
        """Nothing but the shards and their index, under the final name.

        The basis goes last: killed before the rename, the next attempt must know the shards for what they are.
        """
        keep = {INDEX, *index.sizes(), BASIS, LOCK}
        for entry in self.staged.iterdir():
            if entry.name not in keep:
                entry.unlink()
        fsync_dir(self.staged)
        self.staged.rename(self.asked.out)
        fsync_dir(self.asked.out.parent)
        _sweep(self.asked.out)


def _sweep(out: Path) -> None:
    """Take away what only an unfinished folder needs. No reader minds it: a disk that refuses does no harm."""
    with contextlib.suppress(OSError):
        for name in (BASIS, LOCK):
            (out / name).unlink(missing_ok=True)
        fsync_dir(out)


@contextlib.contextmanager
def _held(staged: Path) -> Iterator[None]:
    """One process at a time makes `staged`. ConflictError for the second."""
    staged.mkdir(parents=True, exist_ok=True)
    fd = os.open(staged / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise ConflictError(
            "E-DATA-045", "these shards are being prepared by another process", where=str(staged),
            fix="orch runs   (and wait for it, or give another --out)",
        ) from e  # fmt: skip
    try:
        yield
    finally:
        os.close(fd)
