"""Batches of a corpus that lies in memory (or is mapped there): any sample is found by its number.

The global order is one sequence of samples; sample i of a global batch belongs to rank i % world_size. The state is
the number of samples consumed by all ranks, so a resume is exact and may change the world size. Never skips, repeats or
pads. Letters: B samples of this rank, T tokens a sample. Called by the trainer, through `workloads.data.prefetch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workloads.contract.errors import LocalError
from workloads.data.order import Permutation
from workloads.data.stream import Batch, FeedState, Tokens, hash_parts


class Sequence(Protocol):
    """Tokens in memory or mapped."""

    def __len__(self) -> int: ...

    def __getitem__(self, window: slice, /) -> Tokens: ...


class AnyCorpus(Protocol):
    """`workloads.data.sources.Corpus`, `workloads.data.prepared.Prepared`."""

    @property
    def tokens(self) -> Sequence: ...

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def vocab(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def left_out(self) -> Mapping[str, int]: ...


class BatchPlan:
    """A `Feed` over windows of a corpus: endless batches of one rank, from any position."""

    def __init__(
        self, corpus: AnyCorpus, *, seq_len: int, global_batch: int, rank: int, world_size: int, seed: int,
        borders: bool = False, held_out: float = 0.0,
    ) -> None:  # fmt: skip
        """held_out: the share of the windows, at the end, that no batch holds. LocalError when none is left."""
        if global_batch < world_size:
            raise ValueError(f"a global batch of {global_batch} cannot be shared by {world_size} ranks")
        self.name, self.fingerprint, self.vocab = corpus.name, corpus.fingerprint, corpus.vocab
        self.left_out = corpus.left_out
        self._end, self._borders = corpus.end_id, borders
        self._tokens, self._seq_len, self._seed = corpus.tokens, seq_len, seed
        self._rank, self._world, self._global_batch = rank, world_size, global_batch
        self.windows, self.held = _parted((len(corpus.tokens) - 1) // seq_len, held_out)
        self._permutation = Permutation(self.windows, seed, 0)
        self._epoch = 0

    def batch(self, state: FeedState) -> Batch:
        """The batch that follows after `state.samples` samples were consumed."""
        own = range(self._rank, self._global_batch, self._world)
        rows = np.stack([self._window(state.samples + i) for i in own])
        return self._batch(own, rows, state.samples + self._global_batch)

    def held_out(self, samples: int) -> Batch:
        """`samples` windows that are never trained on, or as many as there are, drawn once for all: for every rank."""
        count = min(samples, self.held)
        order = Permutation(self.held, self._seed, 0)
        rows = np.stack([self._at(self.windows + order(i)) for i in range(count)])
        return self._batch(range(count), rows, count)

    def _batch(self, own: range, rows: Tokens, samples: int) -> Batch:
        high, low = hash_parts(own, rows)
        after = FeedState(samples)
        x_BT = rows[:, :-1]
        borders = borders_of(x_BT, self._end) if self._borders else None
        docs = int(np.count_nonzero(x_BT == self._end))  # that end: as many begin
        return Batch(x_BT, rows[:, 1:], high, low, after, self.name, borders, docs)

    def _window(self, sample: int) -> Tokens:
        """T + 1 tokens: the input and, shifted, the target."""
        epoch, place = divmod(sample, self.windows)
        if epoch != self._epoch:
            self._permutation, self._epoch = Permutation(self.windows, self._seed, epoch), epoch
        return self._at(self._permutation(place))

    def _at(self, window: int) -> Tokens:
        start = window * self._seq_len
        return self._tokens[start : start + self._seq_len + 1]


def _parted(windows: int, held_out: float) -> tuple[int, int]:
    """Windows to train on, and behind them those that are held out: at least one where there shall be any."""
    held = math.ceil(windows * held_out)
    if held >= windows:
        raise LocalError(
            "E-DATA-018", f"nothing is left to train on: {windows} samples, {held} of them held out", where="data",
            fix="give more text, or a smaller data.held_out or data.seq_len",
        )  # fmt: skip
    return windows - held, held


def borders_of(x_BT: Tokens, end_id: int) -> NDArray[np.int32]:
    """Where rows, and documents behind an end token, begin in the flattened rows; and their end."""
    begins = np.zeros(x_BT.shape, dtype=bool)
    begins[:, 0] = True
    begins[:, 1:] = x_BT[:, :-1] == end_id
    return np.append(np.flatnonzero(begins), x_BT.size).astype(np.int32)
