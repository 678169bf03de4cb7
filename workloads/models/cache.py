"""The key/value cache of one attention layer: append, truncate, fork, check.

Letters: B rows (sequences), C capacity in tokens, T new tokens, K key/value heads, H head dimension.
`lengths` is int32[B] on the device: how many tokens of each row are valid. Rows may have different lengths; slots at
or above a row's length hold anything and are never read. Lengths that a caller was given are never changed later.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KvCache:
    """Not thread-safe; inference only (no gradient flows into the cache)."""

    def __init__(
        self, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if min(batch, capacity) < 1:
            raise ValueError(f"a cache needs batch and capacity of at least 1, not {batch} and {capacity}")
        shape = (batch, capacity, kv_heads, head_dim)
        self.k_BCKH = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BCKH = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self._longest = 0  # upper bound of lengths, known on the host: no sync to see that the cache is full

    @property
    def capacity(self) -> int:
        return self.k_BCKH.shape[1]

    def append(self, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        """Put T new tokens behind each row; returns the lengths before the call. ValueError when it does not fit."""
        batch, tokens = k_BTKH.shape[:2]
        if k_BTKH.shape != v_BTKH.shape or k_BTKH.shape[2:] != self.k_BCKH.shape[2:] or batch != len(self.lengths):
            raise ValueError(
                f"cannot append k {tuple(k_BTKH.shape)}, v {tuple(v_BTKH.shape)} to a cache {tuple(self.k_BCKH.shape)}"
            )
        if self._longest + tokens > self.capacity:
            raise ValueError(f"{self._longest} + {tokens} tokens do not fit into a cache of {self.capacity}")
        before = self.lengths
        rows = torch.arange(batch, device=before.device).unsqueeze(1)
        slots = before.unsqueeze(1).long() + torch.arange(tokens, device=before.device)
        self.k_BCKH[rows, slots] = k_BTKH.detach().to(self.k_BCKH.dtype)
        self.v_BCKH[rows, slots] = v_BTKH.detach().to(self.v_BCKH.dtype)
        self.lengths = before + tokens
        self._longest += tokens
        return before

    def truncate(self, lengths: Tensor | int) -> None:
        """Forget tokens at or above `lengths` (one number, or int[B]); a row that is shorter stays as it is."""
        if isinstance(lengths, int):
            self._longest = min(self._longest, max(0, lengths))
            self.lengths = self.lengths.clamp(max=max(0, lengths))
            return
        if lengths.shape != self.lengths.shape:
            raise ValueError(f"lengths {tuple(lengths.shape)} for a cache of {len(self.lengths)} rows")
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths).clamp(min=0))
        self._longest = int(self.lengths.max())

    def fork(self, rows: Tensor) -> KvCache:
        """A new cache whose row i is a copy of row `rows[i]`: for beams and shared prompts."""
        child = KvCache.__new__(KvCache)
        child.k_BCKH, child.v_BCKH = self.k_BCKH[rows], self.v_BCKH[rows]
        child.lengths, child._longest = self.lengths[rows], self._longest
        return child

    def check(self) -> None:
        """ValueError when the cache contradicts itself. Waits for the device: for tests and `--debug`."""
        longest, shortest = int(self.lengths.max()), int(self.lengths.min())
        if shortest < 0 or longest > self.capacity or longest > self._longest:
            raise ValueError(f"lengths {shortest}..{longest}, bound {self._longest}, capacity {self.capacity}")
        valid = torch.arange(self.capacity, device=self.lengths.device) < self.lengths.unsqueeze(1)
        if not (self.k_BCKH[valid].isfinite().all() and self.v_BCKH[valid].isfinite().all()):
            raise ValueError("valid slots hold values that are not finite")
