"""Full causal attention with grouped queries (Ainslie et al., 2023, arXiv:2305.13245).

Without a cache (training, scoring) on torch's SDPA, or on flex attention where the mask is one of blocks; with a cache
on `kernels.kv_decode`, which appends and attends in one.
Letters: B batch, T tokens, S tokens seen, D model, N query heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from kernels.kv_decode.cache import KVCache
from workloads.contract.config.job import ModelSpec
from workloads.models import flex
from workloads.models.cache import LayerCache
from workloads.models.norm import Norm
from workloads.models.rope import Rotation


def check_borders(cu_seqlens: Tensor, tokens: int) -> None:
    """ValueError unless the borders rise from 0 to T. Waits for the device."""
    borders = cu_seqlens.tolist()
    rising = all(a < b for a, b in pairwise(borders))
    if len(borders) < 2 or borders[0] != 0 or borders[-1] != tokens or not rising:
        raise ValueError(f"cu_seqlens must rise from 0 to {tokens}, not {borders[:8]}")


def packed_mask(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """bool [T, T]: token t sees s when both are in one packed sequence and s <= t. ValueError on bad borders."""
    check_borders(cu_seqlens, tokens)
    place = torch.arange(tokens, device=cu_seqlens.device)
    segment = torch.bucketize(place, cu_seqlens.to(place), right=True)
    return (segment.unsqueeze(1) == segment.unsqueeze(0)) & (place.unsqueeze(1) >= place.unsqueeze(0))


def documents_mask(documents_BT: Tensor) -> Tensor:
    """bool [B, 1, T, T]: a token sees itself and those before it in its own document; `documents_BT`: their numbers."""
    tokens = documents_BT.shape[1]
    before_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=documents_BT.device).tril()
    return (documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)).logical_and(before_TT).unsqueeze(1)


class FullAttention(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.d_head
        self.qkv = nn.Linear(spec.dim, (spec.heads + 2 * spec.kv_heads) * spec.d_head, bias=False)
        self.out = nn.Linear(spec.heads * spec.d_head, spec.dim, bias=False)
        self.normed = spec.qk_norm
        self.q_norm, self.k_norm = (
            Norm(spec.d_head, eps=spec.norm_eps) if spec.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rope: Rotation,
        positions: Tensor,
        cu_seqlens: Tensor | None = None,
        cache: LayerCache | None = None,
        counts: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
    ) -> Tensor:
        """ValueError for cu_seqlens with a cache, with B > 1, or with borders that do not cover T; for counts alone."""
        batch, tokens = x_BTD.shape[:2]
        if cu_seqlens is not None and (cache is not None or batch != 1):
            raise ValueError(f"cu_seqlens packs one row without a cache; got {batch} rows, cache: {cache is not None}")
        if counts is not None and cache is None:
            raise ValueError("counts says how far the rows of a cache grow; without a cache, padding needs no counts")
        q_BTNH, k_BTKH, v_BTKH = self._heads(x_BTD, rope, positions)
        q_BNTH, k_BKTH, v_BKTH = (part.transpose(1, 2) for part in (q_BTNH, k_BTKH, v_BTKH))
        if cache is None:
            y_BNTH = self._attend(
                q_BNTH, k_BKTH, v_BKTH, mask if cu_seqlens is None else packed_mask(cu_seqlens, tokens)
            )
        else:
            y_BNTH = cache.attend(q_BNTH, k_BKTH, v_BKTH, counts=counts)
        return self.out(y_BNTH.transpose(1, 2).reshape(batch, tokens, -1))  # type: ignore[no-any-return]

    def _attend(self, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        if isinstance(mask, BlockMask):
            return flex.attend(q_BNTH, k_BKTH, v_BKTH, mask)
        grouped = self.heads != self.kv_heads
        if mask is not None and grouped:  # the kernels that take masks know no groups
            k_BKTH, v_BKTH = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k_BKTH, v_BKTH))
        return F.scaled_dot_product_attention(
            q_BNTH,
            k_BKTH,
            v_BKTH,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=grouped and mask is None,
        )

    def _heads(self, x_BTD: Tensor, rope: Rotation, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, N, H] and keys [B, T, K, H], rotated, and values [B, T, K, H]."""
        heads_BTNH = self.qkv(x_BTD).unflatten(-1, (-1, self.head_dim))
        if self.normed:
            q_BTNH, k_BTKH, v_BTKH = torch.split(heads_BTNH, [self.heads, self.kv_heads, self.kv_heads], dim=2)
            return rope.rotate(self.q_norm(q_BTNH), positions), rope.rotate(self.k_norm(k_BTKH), positions), v_BTKH
        turn_BTNH, v_BTKH = torch.split(heads_BTNH, [self.heads + self.kv_heads, self.kv_heads], dim=2)
        q_BTNH, k_BTKH = torch.split(rope.rotate(turn_BTNH, positions), [self.heads, self.kv_heads], dim=2)
        return q_BTNH, k_BTKH, v_BTKH

    def new_cache(
        self,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
        max_capacity: int | None = None,
    ) -> KVCache:
        """An empty cache for `batch` rows of `capacity` tokens that may grow to `max_capacity` (None: it may not)."""
        return KVCache(
            batch, capacity, self.kv_heads, self.head_dim, dtype=dtype, device=device, max_capacity=max_capacity
        )

    def metrics(self) -> dict[str, Tensor]:
        return {}
