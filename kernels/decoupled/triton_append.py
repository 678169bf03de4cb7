"""One decode step's append in one launch: the oldest token of the tail is quantized, the new one takes its ring slot.

Equal to `QuantizedCache._append_one` bit for bit: divisions are rounded to nearest (`div_rn`), codes half to even, the
scale to fp16 first, and a group without a scale gets the NaN 0x7E00 and the codes of zero. One program a row, since
the row's lengths change at its end. Called by `cache`; never waits for the device, never raises for what only the
device knows: a full row is left as it is and flagged in `overflow`.

Shape letters: B rows, H KV heads (P of them at a time), G groups of 32 (padded to a power of two), D values of a part.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.part import Part
from kernels.decoupled.triton_decode import BITS, slots_of
from kernels.device import next_power_of_2

HEADS = 8
"""Heads at a time."""


@triton.jit
def scale_of(top, LEVELS: tl.constexpr):
    """(fp16 scale, whether there is one) of groups whose largest magnitude is `top` (fp32; NaN where one is NaN)."""
    scale = tl.div_rn(top, tl.full(top.shape, LEVELS, tl.float32)).to(tl.float16)
    known = scale.to(tl.float32) <= 65504.0  # false for inf and NaN
    scale = tl.where(scale < 2.0**-14, 2.0**-14, scale).to(tl.float16)
    bits = tl.where(known, scale.to(tl.int16, bitcast=True), 0x7E00).to(tl.int16)
    return bits.to(tl.float16, bitcast=True), known


@triton.jit
def code_of(x, scale, known, LOW: tl.constexpr, LEVELS: tl.constexpr, ZERO: tl.constexpr):
    """x [P, G, E] fp32, scale and known [P, G] -> codes 0..255."""
    ratio = tl.div_rn(x, tl.broadcast_to(scale.to(tl.float32)[:, :, None], x.shape))
    ratio = (ratio + 12582912.0) - 12582912.0  # 1.5 * 2^23: the sum has no fraction bits, so this rounds half to even
    ratio = tl.where(known[:, :, None], tl.minimum(tl.maximum(ratio, LOW), LEVELS), 0.0)
    return (ratio + ZERO).to(tl.int32)


@triton.jit
def largest_of(x):
    """[P, G, E] fp32 -> [P, G]: the largest magnitude, NaN where one is NaN."""
    some_nan = tl.max((x != x).to(tl.int32), 2) > 0
    return tl.where(some_nan, float("nan"), tl.max(tl.abs(x), 2))


@triton.jit
def append_part(
    new, new_h, new_d, tail, codes, scales, bh, slot, packed, heads, fits, leaves, SLOTS,
    KIND: tl.constexpr, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One part of heads bh (int64 [P]): the token that `leaves` into slot `packed`, the new one into the ring.

    heads (which exist), fits and leaves are [P]: a block, since the interpreter cannot widen one boolean.
    """
    G: tl.constexpr = (D + 31) // 32
    GP: tl.constexpr = triton.next_power_of_2(G)
    g = tl.arange(0, GP)[None, :, None]
    e = tl.arange(0, 16)[None, None, :]
    c_lo = 32 * g + e
    c_hi = c_lo + 16
    mine = heads[:, None, None]
    gone = leaves[:, None, None]
    comes = fits[:, None, None]
    at = new + new_h[:, None, None]
    x_lo = tl.load(at + c_lo * new_d, mask=mine & (c_lo < D), other=0.0)
    x_hi = tl.load(at + c_hi * new_d, mask=mine & (c_hi < D), other=0.0)
    y_lo, y_hi = x_lo, x_hi
    if R > 0:
        ring = tail + (bh[:, None, None] * R + slot) * D
        y_lo = tl.load(ring + c_lo, mask=gone & (c_lo < D), other=0.0)
        y_hi = tl.load(ring + c_hi, mask=gone & (c_hi < D), other=0.0)
    if KIND == 16:
        to = codes + (bh[:, None, None] * SLOTS + packed) * D
        tl.store(to + c_lo, y_lo, mask=gone & (c_lo < D))
        tl.store(to + c_hi, y_hi, mask=gone & (c_hi < D))
    else:
        LEVELS: tl.constexpr = 7.0 if KIND == 4 else 127.0
        LOW: tl.constexpr = -8.0 if KIND == 4 else -127.0
        ZERO: tl.constexpr = 8.0 if KIND == 4 else 128.0
        lo = y_lo.to(tl.float32)
        hi = y_hi.to(tl.float32)
        top_lo = largest_of(lo)
        top_hi = largest_of(hi)
        top = tl.where((top_lo != top_lo) | (top_hi != top_hi), float("nan"), tl.maximum(top_lo, top_hi))
        scale, known = scale_of(top, LEVELS)
        n_lo = code_of(lo, scale, known, LOW, LEVELS, ZERO)
        n_hi = code_of(hi, scale, known, LOW, LEVELS, ZERO)
        token = (bh[:, None] * G + tl.arange(0, GP)[None, :]) * SLOTS + packed
        real = leaves[:, None] & (tl.arange(0, GP) < G)[None, :]
        tl.store(scales + token, scale, mask=real)
        if KIND == 4:
            tl.store(codes + token[:, :, None] * 16 + e, (n_lo | (n_hi << 4)).to(tl.uint8), mask=real[:, :, None])
        else:
            tl.store(codes + token[:, :, None] * 32 + e, n_lo.to(tl.uint8), mask=real[:, :, None])
            tl.store(codes + token[:, :, None] * 32 + 16 + e, n_hi.to(tl.uint8), mask=real[:, :, None])
    if R > 0:
        tl.debug_barrier()  # every thread has read the slot
        ring = tail + (bh[:, None, None] * R + slot) * D
        tl.store(ring + c_lo, x_lo, mask=comes & (c_lo < D))
        tl.store(ring + c_hi, x_hi, mask=comes & (c_hi < D))


@triton.jit(do_not_specialize=["CAPACITY", "H"])
def append_kernel(
    k_sem, k_geo, v, ks_b, ks_h, ks_d, kg_b, kg_h, kg_d, v_b, v_h, v_d,
    tail_sem, tail_geo, tail_v, sem_codes, sem_scales, geo_codes, geo_scales, v_codes, v_scales,
    lengths, packed, overflow, CAPACITY, SLOTS, H,
    SEM: tl.constexpr, GEO: tl.constexpr, V: tl.constexpr, DS: tl.constexpr, DG: tl.constexpr, DV: tl.constexpr,
    R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Grid (B)."""
    b = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + b)
    stored = tl.load(packed + b)
    flag = tl.load(overflow + b)
    fits = length < CAPACITY
    leaves = fits & (length - stored >= R)
    slot = length % R if R > 0 else 0
    for first in range(0, H, P):
        h = first + tl.arange(0, P).to(tl.int64)
        heads = h < H
        fits_P = heads & (length + tl.zeros((P,), tl.int32) < CAPACITY)
        leaves_P = fits_P & (length - stored + tl.zeros((P,), tl.int32) >= R)
        bh = b * H + h
        append_part(k_sem + b * ks_b, h * ks_h, ks_d, tail_sem, sem_codes, sem_scales, bh, slot, stored, heads,
                    fits_P, leaves_P, SLOTS, SEM, DS, R, P)  # fmt: skip
        append_part(k_geo + b * kg_b, h * kg_h, kg_d, tail_geo, geo_codes, geo_scales, bh, slot, stored, heads,
                    fits_P, leaves_P, SLOTS, GEO, DG, R, P)  # fmt: skip
        append_part(v + b * v_b, h * v_h, v_d, tail_v, v_codes, v_scales, bh, slot, stored, heads,
                    fits_P, leaves_P, SLOTS, V, DV, R, P)  # fmt: skip
    tl.debug_barrier()  # every thread has read the lengths
    tl.store(overflow + b, tl.maximum(length, 1), mask=(length >= CAPACITY) & (flag == 0))
    tl.store(lengths + b, length + 1, mask=fits)
    tl.store(packed + b, stored + 1, mask=leaves)


def append_step(cache: QuantizedCache, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> None:
    """Add one token a row: k_sem [B,H,1,S], k_geo [B,H,1,G], v [B,H,1,V], fp16, any strides. No wait; capturable."""
    tails = cache.tails if cache.policy.resid else (None, None, None)
    news = [x[:, :, 0] for x in (k_sem, k_geo, v)]
    sem, geo, val = cache.parts
    append_kernel[(cache.batch,)](
        *news, *(s for x in news for s in x.stride()), *tails, *_stored(sem), *_stored(geo), *_stored(val),
        cache.lengths, cache.packed, cache.overflow, cache.capacity, slots_of(sem), cache.kv_heads,
        SEM=BITS[sem.kind], GEO=BITS[geo.kind], V=BITS[val.kind], DS=sem.dim, DG=geo.dim, DV=val.dim,
        R=cache.policy.resid, P=min(HEADS, next_power_of_2(cache.kv_heads)), num_warps=4,
    )  # fmt: skip


def _stored(part: Part) -> tuple[Tensor | None, Tensor | None]:
    """(codes, scales), or (values, None)."""
    return (part.codes, part.scales) if part.values is None else (part.values, None)
