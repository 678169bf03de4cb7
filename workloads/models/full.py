"""Full causal attention with grouped queries (Ainslie et al., 2023, arXiv:2305.13245), on torch's SDPA.

Letters: B batch, T tokens, S tokens seen, D model, N query heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.contract.config.job import ModelSpec
from workloads.models.cache import KvCache
from workloads.models.rope import Rope


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


def cached_mask(before: Tensor, tokens: int, capacity: int) -> Tensor:
    """bool [B, 1, T, C]: new token t of a row with `before` tokens sees slots up to its own."""
    slot = torch.arange(capacity, device=before.device)
    own = before.unsqueeze(1) + torch.arange(tokens, device=before.device)
    return (slot <= own.unsqueeze(-1)).unsqueeze(1)


class FullAttention(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.d_head
        self.qkv = nn.Linear(spec.dim, (spec.heads + 2 * spec.kv_heads) * spec.d_head, bias=False)
        self.out = nn.Linear(spec.heads * spec.d_head, spec.dim, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rope: Rope,
        positions: Tensor,
        cu_seqlens: Tensor | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        """ValueError for cu_seqlens with a cache, with B > 1, or with borders that do not cover T."""
        batch, tokens = x_BTD.shape[:2]
        if cu_seqlens is not None and (cache is not None or batch != 1):
            raise ValueError(f"cu_seqlens packs one row without a cache; got {batch} rows, cache: {cache is not None}")
        widths = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (part.reshape(batch, tokens, -1, self.head_dim) for part in self.qkv(x_BTD).split(widths, dim=-1))
        q_BTNH, k_BTKH = rope.rotate(q, positions), rope.rotate(k, positions)
        mask = None if cu_seqlens is None else packed_mask(cu_seqlens, tokens)
        if cache is None:
            y_BTNH = self._attend(q_BTNH, k_BTKH, v, mask)
        else:
            before = cache.append(k_BTKH, v)
            seen = cached_mask(before, tokens, cache.capacity)
            y_BTNH = self._attend(q_BTNH, cache.k_BCKH.to(q.dtype), cache.v_BCKH.to(q.dtype), seen)
        return self.out(y_BTNH.reshape(batch, tokens, -1))  # type: ignore[no-any-return]

    def _attend(self, q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None) -> Tensor:
        """Causal without a mask; with one, as the mask says."""
        y_BNTH = F.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2),
            k_BSKH.transpose(1, 2),
            v_BSKH.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        return y_BNTH.transpose(1, 2)

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str) -> KvCache:
        return KvCache(batch, capacity, self.kv_heads, self.head_dim, dtype, device)

    def metrics(self) -> dict[str, Tensor]:
        return {}
