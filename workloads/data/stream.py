"""The seam of training data: a feed makes the batch that follows a state, and the batch carries the state after it.

    state -> feed.batch(state) -> batch -> batch.state -> feed.batch(batch.state) -> ...

A state is saved with the checkpoint of the step that consumed its batch, and nothing else is: what a prefetch thread
has made and nobody consumed is made again. Global sample n comes from virtual shard n % V, and rank r of W owns the
shards v % W == r. Letters: B samples of this rank, T tokens a sample, V virtual shards, W ranks. Called by the
trainer, through `workloads.data.prefetch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""uint8 for bytes, uint16 for vocabularies below 65536, else uint32"""


@dataclass(frozen=True)
class FeedState:
    """Where the data stands. `shards` is empty for feeds that find any sample by its number."""

    samples: int = 0
    """samples that all ranks consumed"""
    shards: Mapping[int, Any] = field(default_factory=dict)
    """JSON values: the positions of the virtual shards of this rank (a resume may give those of others too)"""


@dataclass(frozen=True)
class Batch:
    """This rank's part of one global batch."""

    x_BT: Tokens
    y_BT: Tokens  # x shifted by one
    hash_high: int  # sums of the high and low 32 bits of the samples' hashes
    hash_low: int
    state: FeedState
    """the state to save once this batch is consumed"""
    source: str
    """what the samples were read from: the beat's `data_source`"""
    cu_seqlens: NDArray[np.int32] | None = None
    """borders of the documents in x_BT.flatten(), from 0 to B * T, every row's start among them; None: not asked for"""
    docs: int | None = None
    """documents that begin in x_BT; None: unknown"""

    @property
    def samples(self) -> int:
        return self.state.samples


class Feed(Protocol):
    """Endless batches of one rank, from any state. Not for several threads at once."""

    @property
    def name(self) -> str:
        """The source in a word: `stdlib`, `jsonl`, ..."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the source's content does: a resume on other text is refused."""
        ...

    @property
    def vocab(self) -> int:
        """Tokens are below this."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """Why documents that were met so far are not used, and how many of each."""
        ...

    def batch(self, state: FeedState) -> Batch: ...


def sample_hash(index_in_batch: int, window: Tokens) -> int:
    """64 bits over a sample's tokens and its place in the global batch (so that an exchange is seen)."""
    digest = hashlib.blake2b(window.tobytes(), digest_size=8, salt=index_in_batch.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "big")


def hash_parts(own: range, rows: Tokens) -> tuple[int, int]:
    """(high, low) sums over the rows [B, T + 1], which are the samples `own` of the global batch."""
    high = low = 0
    for i, row in zip(own, rows, strict=True):
        digest = sample_hash(i, row)
        high, low = high + (digest >> 32), low + (digest & 0xFFFFFFFF)
    return high, low


def batch_hash(high_sum: float, low_sum: float) -> str:
    """The global batch's hash from the two sums over all ranks, exact below 2**21 samples: 16 hex digits."""
    return f"{((int(high_sum) << 32) + int(low_sum)) % (1 << 64):016x}"
