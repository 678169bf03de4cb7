"""The attention seam and the registry of its kinds.

Every kind is a module built from a `ModelSpec` with

    forward(x_BTD, *, rope, positions, cu_seqlens=None, cache=None, counts=None, mask=None) -> y_BTD
    new_cache(batch, capacity, dtype, device, max_capacity=None)
    metrics() -> dict[str, Tensor]     on the device, read only when a beat is written

positions: int [T] or [B, T]. cu_seqlens: int [S + 1], borders of S packed sequences in one row (B = 1).
cache: every row grows by T, or by counts[b] when `counts` (int [B], 0..T) is given: the tokens behind them are padding,
which no token sees and whose output means nothing. Inference only: under `torch.no_grad`.
mask: bool [B, 1, T, T], which tokens a token sees, or the same in blocks (`workloads.models.flex`), where rows hold
several documents (training); None: all before it.
A new kind is one module and one line in `_KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from workloads.contract.config.job import ModelSpec
from workloads.models.cache import LayerCache
from workloads.models.full import FullAttention
from workloads.models.rope import Rotation


class Attention(Protocol):
    def __call__(
        self,
        x_BTD: Tensor,
        *,
        rope: Rotation,
        positions: Tensor,
        cu_seqlens: Tensor | None = None,
        cache: LayerCache | None = None,
        counts: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
    ) -> Tensor: ...

    def new_cache(
        self,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
        max_capacity: int | None = None,
    ) -> LayerCache: ...

    def metrics(self) -> dict[str, Tensor]: ...


_KINDS: dict[str, Callable[[ModelSpec], FullAttention]] = {"full": FullAttention}


def make_attention(spec: ModelSpec) -> FullAttention:
    """The attention module of `spec.attention.kind`."""
    return _KINDS[spec.attention.kind](spec)
