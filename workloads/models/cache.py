"""What a layer's cache of keys and values must offer to a model and to generation: the seam between the two.

`kernels.kv_decode.cache.KVCache` and `workloads.decode.splitcache.SplitCache` are such caches. `lengths` is int32 [B]
on the device and changes in place; `longest` is what the host knows of its maximum, never too small. No code here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class LayerCache(Protocol):
    lengths: Tensor
    longest: int

    @property
    def batch(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """What its tensors hold, used or not."""
        ...

    def attend(self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTE: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """Append, and attend causally from the new tokens over their whole row: out [B, H, T, E]."""
        ...

    def truncate(self, lengths: Tensor | int) -> None: ...

    def fork(self, rows: Sequence[int] | torch.Tensor) -> LayerCache: ...

    def replayed(self, tokens: int) -> None:
        """A captured graph has appended `tokens` to each row since."""
        ...
