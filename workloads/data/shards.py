"""Batches of a stream of documents: V virtual shards, of which rank r of W owns v % W == r.

Global sample n is the next window of shard n % V, so every W that divides V and the global batch sees the same global
batches, and a resume may change it; where one changes the global batch too, W must divide the samples before it. The
state of a shard is that of its `Cursor`, under the source's name: another source's position (kept while a fallback is
read) is passed on untouched. Letters: B samples of this rank, T tokens a sample. Called by `workloads.data.feeds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workloads.contract.errors import IntegrityError, SpecError
from workloads.data.blocks import BlockSource
from workloads.data.cursor import START, Cursor, Cut, Windows
from workloads.data.filecursor import FileCursor
from workloads.data.reading import BlockReader, Patience
from workloads.data.rowfiles import RowFiles
from workloads.data.stream import Batch, FeedState, hash_parts
from workloads.data.tokenizers import bind


class ShardFeed:
    """A `Feed`. SpecError when shards, global batch and ranks do not fit each other or the source."""

    def __init__(
        self, source: BlockSource | RowFiles, cut: Cut, patience: Patience, *,
        shards: int, global_batch: int, rank: int, world_size: int, seed: int, borders: bool,
    ) -> None:  # fmt: skip
        check_sharing(shards, global_batch, world_size)
        if source.blocks < shards:
            raise SpecError(
                "E-DATA-006", f"{source.name}: the text is too small for {shards} virtual shards", value=source.blocks,
                expected=f"text that can be cut in at least {shards} places",
                fix="give more text, or a smaller data.shards (the ranks must divide it)",
            )  # fmt: skip
        self.name, self.vocab, self.source = source.name, cut.tokenizer.vocab_size, source
        self.fingerprint = bind(source.fingerprint, cut.tokenizer)
        self._shards, self._own = shards, range(rank, global_batch, world_size)
        self._world = world_size
        self._global_batch, self._seq_len, self._borders = global_batch, cut.seq_len, borders
        own = range(rank, shards, world_size)
        self._cursors: dict[int, Windows] = {}
        if isinstance(source, RowFiles):
            self._cursors |= {v: FileCursor(source, cut, shard=v, shards=shards, seed=seed) for v in own}
        else:
            reader = BlockReader(source, patience)
            self._cursors |= {v: Cursor(reader, cut, shard=v, shards=shards, seed=seed) for v in own}
        self._at: FeedState | None = None
        self._kept: Mapping[int, Mapping[str, Any]] = {}

    @property
    def left_out(self) -> Mapping[str, int]:
        return self.source.left_out.reasons

    def batch(self, state: FeedState) -> Batch:
        """SourceGone when the source gives no data, IntegrityError when the state is none of this feed's."""
        if state is not self._at:
            self._enter(state)
        self._at = None  # until the batch is whole: an error leaves cursors between two states
        order = [(state.samples + i) % self._shards for i in self._own]
        for v in dict.fromkeys(order):
            self._cursors[v].want()
        windows, starts = zip(*(self._cursors[v].window() for v in order), strict=True)
        rows = np.stack(windows)
        high, low = hash_parts(self._own, rows)
        self._at = FeedState(state.samples + self._global_batch, self._states())
        borders = _borders(starts, self._seq_len) if self._borders else None
        documents = sum(len(row) for row in starts)
        return Batch(rows[:, :-1], rows[:, 1:], high, low, self._at, self.name, borders, documents)

    def _enter(self, state: FeedState) -> None:
        self._check_place(state.samples)
        self._kept = {v: _positions(state.shards[v], v) for v in self._cursors if v in state.shards}
        if state.shards and (lost := sorted(self._cursors.keys() - self._kept.keys())):
            raise IntegrityError("E-DATA-007", f"the checkpoint has no position of the data's virtual shard {lost[0]}")
        for v, cursor in self._cursors.items():
            try:
                cursor.seek(self._kept.get(v, {}).get(self.name, START))
            except ValueError as e:
                raise IntegrityError("E-DATA-007", f"the checkpoint's data position is wrong: shard {v}: {e}") from e

    def _check_place(self, samples: int) -> None:
        """SpecError when this rank's samples from here on are not those of its shards: W must divide both."""
        if samples % self._world == 0:
            return
        common = math.gcd(samples, self._shards, self._global_batch)
        fits = [n for n in range(1, common + 1) if common % n == 0]
        raise SpecError(
            "E-DATA-017", f"{samples} samples were trained on, which do not divide over {self._world} ranks",
            value=samples, expected=f"one of these numbers of ranks: {', '.join(map(str, fits))}",
            fix=f"resources.ranks: {fits[-1]}   (or begin a new run)",
        )  # fmt: skip

    def _states(self) -> dict[int, dict[str, Any]]:
        return {v: {**self._kept.get(v, {}), self.name: cursor.state} for v, cursor in self._cursors.items()}


def check_sharing(shards: int, global_batch: int, world_size: int) -> None:
    """SpecError unless the ranks divide the virtual shards and the global batch."""
    for key, value in (("data.shards", shards), ("train.global_batch", global_batch)):
        if value % world_size:
            raise SpecError(
                "E-DATA-008", f"{key}: {value} does not divide over {world_size} ranks", value=value,
                expected=f"a multiple of {world_size} (ranks)",
                fix=f"{key}: {(value // world_size + 1) * world_size}, or other ranks",
            )  # fmt: skip


def _positions(value: Any, shard: int) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(at, list) for at in value.values()):
        raise IntegrityError("E-DATA-007", f"the checkpoint's data position is wrong: shard {shard}", value=value)
    return value


def _borders(starts: Sequence[Sequence[int]], seq_len: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Where rows and documents begin in the flattened rows, and their end."""
    places = {row * seq_len + at for row, found in enumerate(starts) for at in (0, *found)}
    return np.array([*sorted(places), len(starts) * seq_len], dtype=np.int32)
