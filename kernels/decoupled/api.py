"""What a user calls: one token of decoupled attention over a quantized cache, by the kernels or the reference.

    out = softmax over null, prefix and tail of (q_sem . k_sem + q_geo . k_geo), times v            (kernels.md 6.2)

Inference only. Imports Triton only where it runs. Called by models; `plan` is for who captures a CUDA graph.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.dispatch import by_triton
from kernels.decoupled.plan import DecoupledPlan
from kernels.decoupled.reference import NullToken, decoupled_decode_reference

DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)


def decoupled_decode(
    q_sem: Tensor,
    q_geo: Tensor,
    cache: QuantizedCache,
    *,
    null: NullToken | None = None,
    passes: int | None = None,
    partitions: int | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one new token a row over everything in `cache` (append it first): [B, Hq, d_v] in q's dtype.

    q_sem [B, Hq, d_sem], q_geo [B, Hq, d_geo]: fp16, bf16 or fp32, with gate, temperature and 2/sqrt(d) multiplied in
    (`prefill.gated_queries`); Hq is a multiple of the cache's KV heads. null: a token that every query sees. A row that
    sees nothing gives 0 and LSE -inf. return_lse: also the natural log-sum-exp, fp32 [B, Hq].

    passes 1 or 2 and partitions (of 2 passes) force what `DecoupledPlan` would choose; partitions=0 is refused when a
    row has quantized tokens (that costs one wait for the device). backend: auto (the kernels where Triton runs, else
    the reference), triton, or reference; the environment's KERNELS_BACKEND=triton|reference goes before `auto`. SDPA
    cannot read a quantized cache, so no thresholds file decides here.
    ValueError for shapes, dtypes or options that do not fit, and when a gradient would be wanted.
    """
    _check(q_sem, q_geo, cache)
    if by_triton(q_sem, backend):
        plan = DecoupledPlan.of(cache, q_sem.shape[1], dtype=q_sem.dtype, passes=passes, partitions=partitions)
        if plan.choice.partitions == 0:
            _refuse_prefix(cache)
        result, lse = plan.run(q_sem, q_geo, cache, null=null, out=out), plan.lse
    else:
        result, lse = _by_reference(q_sem, q_geo, cache, null, out)
    return (result, lse) if return_lse else result


def _by_reference(
    q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, null: NullToken | None, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """In fp32 over the dequantized cache."""
    keys = cache.dequantized(torch.float32)
    both = decoupled_decode_reference(
        q_sem, q_geo, *keys, cache.lengths, null=null, dtype=torch.float32, return_lse=True
    )
    assert isinstance(both, tuple)
    result = both[0].to(q_sem.dtype)
    if out is not None:
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(f"out is {out.dtype} {tuple(out.shape)}; it must be {result.dtype} {tuple(result.shape)}")
        result = out.copy_(result)
    return result, both[1]


def _check(q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache) -> None:
    shapes = tuple(q_sem.shape), tuple(q_geo.shape)
    d_sem, d_geo, _ = cache.dims
    heads = shapes[0][1] if len(shapes[0]) == 3 else 0
    if shapes != ((cache.batch, heads, d_sem), (cache.batch, heads, d_geo)) or not heads or heads % cache.kv_heads:
        raise ValueError(
            f"q_sem {shapes[0]} and q_geo {shapes[1]}: for this cache they are [{cache.batch}, Hq, {d_sem}] and "
            f"[{cache.batch}, Hq, {d_geo}] with Hq a multiple of {cache.kv_heads}"
        )
    if q_sem.dtype not in DTYPES or q_geo.dtype != q_sem.dtype:
        raise ValueError(f"q_sem is {q_sem.dtype}, q_geo {q_geo.dtype}: both float16, both bfloat16, or both float32")
    if q_sem.device != cache.lengths.device or q_geo.device != cache.lengths.device:
        raise ValueError(f"q_sem on {q_sem.device}, q_geo on {q_geo.device}, the cache on {cache.lengths.device}")
    if torch.is_grad_enabled() and (q_sem.requires_grad or q_geo.requires_grad):
        raise ValueError(
            "decoupled_decode has no gradient: call it under torch.no_grad(); to train, use prefill.decoupled_prefill "
            "(SDPA on joined queries and keys)"
        )


def _refuse_prefix(cache: QuantizedCache) -> None:
    packed = int(cache.packed.max())
    if packed:
        raise ValueError(f"partitions=0 takes rows without quantized tokens, but one has {packed}; give 1 or more")
