"""The inputs of a parity cell, what the right answer is, and how far PyTorch's own fp16 is from it.

`build` makes a cache with ragged rows, a turned ring, a shortened tail, and NaN or noise in every slot that holds no
token; `expected` is attention over the dequantized cache in fp64; `peer` is SDPA over the same values in fp16. Knows no
kernel. Called by `parity` and by tests.

Shape letters: B rows, H query heads, K KV heads, C capacity, S = d_sem, G = d_geo, V = d_v.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.policy import KVCachePolicy
from kernels.decoupled.reference import NullToken, decoupled_decode_reference

FORMATS: Final = {
    "q4q8q4": ("q4_0@32", "q8_0@32", "q4_0@32"),
    "fp16": ("fp16", "fp16", "fp16"),
    "q8": ("q8_0@32", "q8_0@32", "q8_0@32"),
    "q4": ("q4_0@32", "q4_0@32", "q4_0@32"),
    "fp16q4q8": ("fp16", "q4_0@32", "q8_0@32"),
    "q8fp16q4": ("q8_0@32", "fp16", "q4_0@32"),
}
DTYPES: Final = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Problem:
    """q_sem [B,H,S], q_geo [B,H,G] in the cell's dtype, the cache, and the null token or None."""

    q_sem: Tensor
    q_geo: Tensor
    cache: QuantizedCache
    null: NullToken | None


def build(params: Mapping[str, Any], device: torch.device, seed: int) -> Problem:
    """params: heads (B, H, K), dims (S, G, V), formats, prefix, resid, null, dtype, and `data`: normal, big or needle.

    Row 0 has `prefix` quantized tokens and a full tail; row 1 no prefix and half a tail; row 2 half the prefix and no
    tail; and so on in turn. big: scores near +-1e4. needle: one key outweighs all others by 2^15 while v is small.
    """
    batch, heads, kv_heads = params["heads"]
    prefix, resid = params["prefix"], params["resid"]
    policy = KVCachePolicy.parse("ksem={},kgeo={},v={},resid={}".format(*FORMATS[params["formats"]], resid))
    rows = [[(prefix, resid), (0, resid // 2), (prefix // 2, 0)][b % 3] for b in range(batch)]
    if prefix == 0:
        rows = [(0, resid if b % 2 else (resid + 1) // 2) for b in range(batch)]
    before = [stored + resid if stored else fresh for stored, fresh in rows]
    gen = torch.Generator(device).manual_seed(seed)
    d_sem, d_geo, d_v = params["dims"]
    cache = QuantizedCache(batch, max(*before, 1) + 3, kv_heads, d_sem, d_geo, d_v, policy, device)
    keys = [_normal(gen, batch, kv_heads, max(before), dim) for dim in params["dims"]]
    q_sem, q_geo = (_normal(gen, batch, heads, 2 * dim) / math.sqrt(dim) for dim in params["dims"][:2])
    if params["data"] == "big":
        q_sem, q_geo = q_sem * 2000, q_geo * 2000
    if params["data"] == "needle":
        keys[2] = (keys[2] * 0.2 + 1) / 256
        keys[0][:, :, 0] = _along(q_sem[..., ::2], kv_heads) * 11.0
    if max(before):
        k_sem, k_geo, v = (x.half() for x in keys)
        cache.append(k_sem, k_geo, v, torch.tensor(before, device=device))
        cache.truncate(torch.tensor([stored + fresh for stored, fresh in rows], device=device))
    poison(cache)
    dtype = DTYPES[params["dtype"]]
    q_sem, q_geo = q_sem[..., ::2].to(dtype), q_geo[..., ::2].to(dtype)
    if params["null"] != "strided":  # with strided nulls the queries are strided too
        q_sem, q_geo = q_sem.contiguous(), q_geo.contiguous()
    return Problem(q_sem, q_geo, cache, _null(params, gen))


def poison(cache: QuantizedCache) -> None:
    """NaN (0xFF for codes) into every slot that holds no token."""
    for part in cache.parts:
        for x in part.tensors():
            slot_dim = 2 if x is part.values else 3
            unused = torch.arange(x.shape[slot_dim], device=x.device) >= cache.packed[:, None]
            shape = [1] * x.dim()
            shape[0], shape[slot_dim] = unused.shape
            x.masked_fill_(unused.reshape(shape), torch.nan if x.is_floating_point() else 255)
    hidden = ~cache.tail().visible_BR[:, None, :, None]
    for x in cache.tails:
        x.masked_fill_(hidden, torch.nan)


def expected(problem: Problem) -> tuple[Tensor, Tensor]:
    """(out [B,H,V], lse [B,H]) in fp64, over the dequantized cache."""
    q_sem, q_geo, cache = problem.q_sem, problem.q_geo, problem.cache
    keys = cache.dequantized(torch.float64)
    both = decoupled_decode_reference(q_sem, q_geo, *keys, cache.lengths, null=problem.null, return_lse=True)
    assert isinstance(both, tuple)
    return both


def peer(problem: Problem) -> tuple[Tensor, Tensor]:
    """What PyTorch gives in fp16: SDPA by q' and k' over the dequantized values rounded to fp16, and the LSE of the
    same scores. The output is rounded to the queries' dtype. A row that sees nothing gives 0 and -inf, as it must."""
    cache = problem.cache
    k_sem, k_geo, v = cache.dequantized(torch.float16)
    q_BH1D = torch.cat((problem.q_sem, problem.q_geo), -1).half().unsqueeze(2)
    k_BKND = torch.cat((k_sem, k_geo), -1)
    visible_BN = torch.arange(cache.capacity, device=v.device) < cache.lengths[:, None]
    if problem.null is not None:
        n_sem, n_geo, n_v = (x.half().unsqueeze(2) for x in problem.null.rows(cache.batch, cache.kv_heads, cache.dims))
        k_BKND = torch.cat((torch.cat((n_sem, n_geo), -1), k_BKND), 2)
        v = torch.cat((n_v, v), 2)
        visible_BN = torch.cat((torch.ones_like(visible_BN[:, :1]), visible_BN), 1)
    group = q_BH1D.shape[1] // cache.kv_heads
    k_BHND, v_BHNV = k_BKND.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask_B11N = visible_BN[:, None, None]
    out_BHV = scaled_dot_product_attention(q_BH1D, k_BHND, v_BHNV, mask_B11N, scale=1.0).squeeze(2)
    s_BHN = (q_BH1D @ k_BHND.transpose(2, 3)).squeeze(2).float().masked_fill(~mask_B11N.squeeze(2), -torch.inf)
    out_BHV = out_BHV.masked_fill(~visible_BN.any(1)[:, None, None], 0.0)
    return out_BHV.to(problem.q_sem.dtype), torch.logsumexp(s_BHN, -1)


def _null(params: Mapping[str, Any], gen: torch.Generator) -> NullToken | None:
    """contiguous [K, d]; strided: every third element of a wider row, heads in turned order; batched [B, K, d]."""
    batch, _, kv_heads = params["heads"]
    form = params["null"]
    if form == "none":
        return None

    def make(dim: int) -> Tensor:
        if form == "strided":
            return _normal(gen, 3 * dim, kv_heads).half()[::3].T
        return _normal(gen, *((batch,) if form == "batched" else ()), kv_heads, dim).half()

    k_sem, k_geo, v = (make(dim) for dim in params["dims"])
    return NullToken(k_sem, k_geo, v)


def _along(q_BHD: Tensor, kv_heads: int) -> Tensor:
    """[B, K, D]: the mean query of each KV head's group, over its squared length."""
    q_BKD = q_BHD.reshape(q_BHD.shape[0], kv_heads, -1, q_BHD.shape[-1]).mean(2)
    return q_BKD / q_BKD.square().sum(-1, keepdim=True)


def _normal(gen: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=gen, device=gen.device)
