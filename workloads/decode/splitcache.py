"""A layer's cache in the formats of a `KVCachePolicy`, for a model whose attention has no semantic and geometric parts.

A policy speaks of k_sem, k_geo and v. A model with one key a head has its key cut in two by columns, after the
rotation: k_sem is the first half of a head, k_geo the second. That is exact, whatever the model,

    q . k = q[:H/2] . k[:H/2] + q[H/2:] . k[H/2:]

so a policy of fp16 alone computes plain attention, and any other one costs its formats' rounding and nothing else. The
name is the only untrue thing: neither half is more semantic than the other, and `ksem` and `kgeo` are the formats of
the two halves.

One token a row is a decode step: it is appended, and `kernels.decoupled` attends over the stored formats. Several are a
prompt: they see what is stored as it is stored, and each other exactly; then they are appended. So the rounding of a
token is felt from the next call on. Inference only. Called by the models, one cache a layer, through `LayerCache`.

Letters: B rows, H query heads, K key/value heads, T new tokens, N stored and new, C of the new at a time, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.decoupled.api import decoupled_decode
from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.policy import KVCachePolicy
from workloads.models.decoder import Decoder

Mark = tuple[tuple[Tensor, ...], int]
CHUNK = 512
"""Queries of a prompt at a time, behind stored tokens."""


class SplitCache:
    """Room for `capacity` tokens a row; it does not grow. `dtype`: of the model's queries, keys and values."""

    def __init__(
        self,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        *,
        policy: KVCachePolicy,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self._half = head_dim // 2
        self.dtype = dtype
        self.held = QuantizedCache(
            batch, capacity, kv_heads, self._half, head_dim - self._half, head_dim, policy, device
        )
        self.lengths = self.held.lengths  # the same tensor for ever

    @property
    def batch(self) -> int:
        return self.held.batch

    @property
    def capacity(self) -> int:
        return self.held.capacity

    @property
    def longest(self) -> int:
        return self.held.longest

    @longest.setter
    def longest(self, value: int) -> None:
        self.held.longest = value

    @property
    def size_bytes(self) -> int:
        return self.held.size_bytes

    def attend(self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTE: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """As `KVCache.attend`, causal and scaled by 1/sqrt(D); with `counts` the output of padding means nothing."""
        if q_BHTD.shape[2] == 1:
            self._append(k_BKTD, v_BKTE, counts)
            q_BHD = q_BHTD[:, :, 0] / math.sqrt(q_BHTD.shape[3])
            q_sem, q_geo = (half.contiguous() for half in (q_BHD[..., : self._half], q_BHD[..., self._half :]))
            out_BHD = decoupled_decode(q_sem, q_geo, self.held)
            assert isinstance(out_BHD, Tensor)
            return out_BHD.unsqueeze(2)
        out_BHTD = self._read(q_BHTD, k_BKTD, v_BKTE)
        self._append(k_BKTD, v_BKTE, counts)
        return out_BHTD

    def _append(self, k_BKTD: Tensor, v_BKTE: Tensor, counts: Tensor | None) -> None:
        k, v = k_BKTD.half(), v_BKTE.half()
        k_sem, k_geo = (half.contiguous() for half in (k[..., : self._half], k[..., self._half :]))
        self.held.append(k_sem, k_geo, v.contiguous(), counts)

    def _read(self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTE: Tensor) -> Tensor:
        """A prompt's attention: over the stored tokens as they are stored, and causally over its own."""
        gqa = q_BHTD.shape[1] != k_BKTD.shape[1]
        if not self.longest:
            return scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTE, is_causal=True, enable_gqa=gqa)
        old = self.longest
        k_sem, k_geo, v_old = (x[:, :, :old] for x in self.held.dequantized(q_BHTD.dtype))
        k_BKND = torch.cat((torch.cat((k_sem, k_geo), -1), k_BKTD), 2)
        v_BKNE = torch.cat((v_old, v_BKTE), 2)
        place_N = torch.arange(k_BKND.shape[2], device=q_BHTD.device)
        seen_BN = (place_N < self.lengths[:, None]) | (place_N >= old)
        done = []
        for first in range(0, q_BHTD.shape[2], CHUNK):  # PyTorch holds all scores at once where there is a mask
            q_BHCD = q_BHTD[:, :, first : first + CHUNK]
            end = old + first + q_BHCD.shape[2]
            own_CN = place_N[:end] <= place_N[old + first : end, None]
            mask_B1CN = (seen_BN[:, None, :end] & own_CN).unsqueeze(1)
            k, v = k_BKND[:, :, :end], v_BKNE[:, :, :end]
            done.append(scaled_dot_product_attention(q_BHCD, k, v, mask_B1CN, enable_gqa=gqa))
        return torch.cat(done, 2)

    def truncate(self, lengths: Tensor | int) -> None:
        """Forget the tokens at or above `lengths`. ValueError when a row was full in a step that the host missed.

        What has left the tail stays as it was rounded. Waits for the device.
        """
        self.held.check()
        self.held.truncate(lengths)

    def fork(self, rows: Sequence[int] | Tensor) -> SplitCache:
        """A cache whose row i is a copy of row rows[i]. Shares no memory."""
        self.held.check()
        child = SplitCache.__new__(SplitCache)
        child._half, child.dtype, child.held = self._half, self.dtype, self.held.fork(rows)
        child.lengths = child.held.lengths
        return child

    def replayed(self, tokens: int) -> None:
        self.held.replayed(tokens)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.held.tensors()

    def mark(self) -> Mark:
        """What one more step would change and `reset` cannot work out: the books, and the tail, whose oldest slot the
        step writes over. The parts need no copy: a step writes there at `packed`, which nobody reads once it is back.
        """
        held = self.held
        return tuple(x.clone() for x in (held.lengths, held.packed, held.overflow, *held.tails)), held.longest

    def reset(self, mark: Mark) -> None:
        """Back to `mark`, in the same tensors: a captured graph holds them."""
        held = self.held
        for x, was in zip((held.lengths, held.packed, held.overflow, *held.tails), mark[0], strict=True):
            x.copy_(was)
        held.longest = mark[1]


def split_caches(model: Decoder, batch: int, capacity: int, policy: KVCachePolicy) -> list[SplitCache]:
    """An empty cache a layer, for the dtype and device of the weights."""
    spec, weight = model.spec, model.embed.weight
    return [
        SplitCache(batch, capacity, spec.kv_heads, spec.d_head, policy=policy, dtype=weight.dtype, device=weight.device)
        for _ in range(spec.layers)
    ]
