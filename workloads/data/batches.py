"""Batches: which samples a rank gets at a step, their tokens, and a hash that is the same for every world size.

The global order is one sequence of samples; sample i of a global batch belongs to rank i % world_size. The state is
the number of samples consumed by all ranks, so a resume is exact and may change the world size. Never skips, repeats or
pads. Letters: B samples of this rank, T tokens a sample. Called by the trainer, through `workloads.data.prefetch`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.data.order import Permutation
from workloads.data.sources import Corpus, Tokens


@dataclass(frozen=True)
class Batch:
    """This rank's part of one global batch."""

    x_BT: Tokens
    y_BT: Tokens  # x shifted by one
    hash_high: int  # sums of the high and low 32 bits of the samples' hashes
    hash_low: int
    samples: int
    """samples consumed by all ranks once this batch is: the state to save with it"""


def sample_hash(index_in_batch: int, window: Tokens) -> int:
    """64 bits over a sample's tokens and its place in the global batch (so that an exchange is seen)."""
    digest = hashlib.blake2b(window.tobytes(), digest_size=8, salt=index_in_batch.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "big")


def batch_hash(high_sum: float, low_sum: float) -> str:
    """The global batch's hash from the two sums over all ranks, exact below 2**21 samples: 16 hex digits."""
    return f"{((int(high_sum) << 32) + int(low_sum)) % (1 << 64):016x}"


class BatchPlan:
    """Endless batches of one rank, from any position."""

    def __init__(
        self, corpus: Corpus, *, seq_len: int, global_batch: int, rank: int, world_size: int, seed: int
    ) -> None:
        if global_batch < world_size:
            raise ValueError(f"a global batch of {global_batch} cannot be shared by {world_size} ranks")
        self._tokens, self._seq_len, self._seed = corpus.tokens, seq_len, seed
        self._rank, self._world, self._global_batch = rank, world_size, global_batch
        self.windows = (len(corpus.tokens) - 1) // seq_len
        self._permutation = Permutation(self.windows, seed, 0)
        self._epoch = 0

    def batch(self, samples: int) -> Batch:
        """The batch that follows after `samples` samples were consumed."""
        own = range(self._rank, self._global_batch, self._world)
        rows = np.stack([self._window(samples + i) for i in own])
        high = low = 0
        for i, row in zip(own, rows, strict=True):
            digest = sample_hash(i, row)
            high, low = high + (digest >> 32), low + (digest & 0xFFFFFFFF)
        return Batch(rows[:, :-1], rows[:, 1:], high, low, samples + self._global_batch)

    def _window(self, sample: int) -> NDArray[np.uint8]:
        """T + 1 tokens: the input and, shifted, the target."""
        epoch, place = divmod(sample, self.windows)
        if epoch != self._epoch:
            self._permutation, self._epoch = Permutation(self.windows, self._seed, epoch), epoch
        start = self._permutation(place) * self._seq_len
        return self._tokens[start : start + self._seq_len + 1]
