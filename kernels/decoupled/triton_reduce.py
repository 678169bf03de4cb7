"""The reduce kernel of the 2-pass decode: partial results, and the null token as one more, to one answer.

The sum is taken in the order of the partitions, so that a run repeats bit for bit. It is put in place while the decode
kernel still runs and takes the null token's score meanwhile. Called by `plan`; never reads the cache. It also runs when
there are no partitions at all.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.triton_decode import NullRows, Scratch, null_arguments, overlaps, programs_of
from kernels.decoupled.triton_parts import null_score
from kernels.device import ceil_div, next_power_of_2

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["HQ", "TOTAL"])
def reduce_kernel(
    q_sem, q_geo, qs_b, qs_h, qs_d, qg_b, qg_h, qg_d,
    null_sem, null_geo, null_v, ns_b, ns_h, ns_d, ng_b, ng_h, ng_d, nv_b, nv_h, nv_d,
    packed, part_m, part_d, part_o, out, lse, HQ, TOTAL,
    DS: tl.constexpr, DG: tl.constexpr, DV: tl.constexpr, G: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    W: tl.constexpr, HAS_NULL: tl.constexpr, HAS_PREFIX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (B * Hq, ceil(DV / W)): merge TOTAL partial results (T >= TOTAL, a power of two), C at a time, W columns.

    The null token is one more partition: m = its score, d = 1, o = its value. TOTAL = 0 is fine. Where there are keys
    but no partition to take them (not HAS_PREFIX, packed > 0) the answer is NaN: some keys never pass for all.
    Lets no other launch start early: decode programs placed beside these share the multiprocessors so unevenly that a
    decode takes 1.3 to 2 times as long.
    """
    bh = tl.program_id(0).to(tl.int64)
    b = bh // HQ
    h = bh % HQ
    kv = h // G
    t = tl.arange(0, T)
    c = tl.arange(0, C)
    dv = tl.program_id(1) * W + tl.arange(0, W)
    if HAS_NULL:
        one = tl.full((1,), 1.0, tl.float32)
        k_s = (null_sem + b * ns_b + kv * ns_h, ns_d)
        k_g = (null_geo + b * ng_b + kv * ng_h, ng_d)
        qs = (q_sem + b * qs_b + h * qs_h, qs_h, qs_d)
        qg = (q_geo + b * qg_b + h * qg_h, qg_h, qg_d)
        s_null = tl.sum(null_score(qs, qg, k_s, k_g, one, 1, DS, DG, 1), 0) * LOG2E
        v = tl.load(null_v + b * nv_b + kv * nv_h + dv * nv_d, mask=dv < DV, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()  # the query, read above, was written before the decode kernel let this one start
    m_T = tl.load(part_m + bh * TOTAL + t, mask=t < TOTAL, other=-float("inf"))
    d_T = tl.load(part_d + bh * TOTAL + t, mask=t < TOTAL, other=0.0)
    m = tl.max(m_T, 0)
    if HAS_NULL:
        m = tl.maximum(m, s_null)
    base = tl.where(m == -float("inf"), 0.0, m)
    w_T = tl.where(m_T == -float("inf"), 0.0, tl.exp2(m_T - base))
    d = tl.sum(w_T * d_T, 0)
    acc = tl.zeros((W,), tl.float32)
    for first in range(0, TOTAL, C):
        p = first + c
        real = p < TOTAL
        m_C = tl.load(part_m + bh * TOTAL + p, mask=real, other=-float("inf"))
        w_C = tl.where(m_C == -float("inf"), 0.0, tl.exp2(m_C - base))
        o = tl.load(part_o + (bh * TOTAL + p)[:, None] * DV + dv[None, :],
                    mask=real[:, None] & (dv < DV)[None, :], other=0.0)  # fmt: skip
        acc += tl.sum(w_C[:, None] * o, 0)
    if HAS_NULL:
        w = tl.exp2(s_null - base)
        d += w
        acc += w * v
    some = tl.where(d == 0.0, 1.0, d)
    o = tl.where(d == 0.0, 0.0, acc / some)
    log = tl.where(d == 0.0, -float("inf"), (base + tl.log2(some)) * LN2)
    if not HAS_PREFIX:
        lost = tl.load(packed + b) > 0
        o = tl.where(lost, float("nan"), o)
        log = tl.where(lost, float("nan"), log)
    tl.store(out + bh * DV + dv, o.to(out.dtype.element_ty), mask=dv < DV)
    tl.store(lse + bh, log, mask=tl.program_id(1) == 0)


def launch(
    q_sem: Tensor,
    q_geo: Tensor,
    cache: QuantizedCache,
    null: NullRows | None,
    scratch: Scratch,
    out: Tensor,
    lse: Tensor,
    *,
    partitions: int,
    overlap: bool = True,
) -> None:
    """scratch (of `triton_decode.launch`) and the null token to out [B,Hq,V] and lse [B,Hq]."""
    batch, q_heads, _ = q_sem.shape
    pdl = overlap and overlaps(q_sem)
    options = {"launch_pdl": True} if pdl else {}
    total = programs_of(partitions, cache.policy.resid)
    rows = next_power_of_2(max(total, 1))
    at_once = min(rows, 64)
    columns = min(next_power_of_2(cache.v.dim), 1024 // min(at_once, 16) if rows <= 16 else 32)
    asked = (q_sem, q_geo, *q_sem.stride(), *q_geo.stride()) if null else (None,) * 8
    reduce_kernel[(batch * q_heads, ceil_div(cache.v.dim, columns))](
        *asked, *null_arguments(null), cache.packed, *scratch, out, lse, q_heads, total,
        DS=cache.sem.dim, DG=cache.geo.dim, DV=cache.v.dim, G=q_heads // cache.kv_heads,
        T=rows, C=at_once, W=columns, HAS_NULL=null is not None, HAS_PREFIX=partitions > 0, PDL=pdl,
        num_warps=max(1, at_once * columns // 1024), **options,
    )  # fmt: skip
