"""The decode kernel: one query token a row over a quantized prefix and an fp16 tail, in partitions or in one pass.

One program is one warp: it takes all query heads of one KV head over a range of blocks of N = 64 tokens, whole codes
loaded by asynchronous 16-byte copies, three blocks in flight. A warp alone has nobody to exchange P with, so nothing
but stored codes passes through shared memory. The range comes from the row's own length, read on the device; no length
is a compile-time constant. Storage is group-major (README, Layout): every (row, head, group) is one stream, and no head
size is padded to a power of two. Called by `plan`; never uses a slot at or above `packed` (or, in the tail, `lengths`).
A NaN in a row's data gives NaN in that row and head.

Shape letters: B rows, KVH KV heads, Hq query heads; M, S, N as in `triton_codes`; R ring slots of the tail.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.part import Part
from kernels.decoupled.triton_codes import (
    largest,
    load_q,
    load_rows,
    narrow,
    power_of_two_scale,
    prefetch_part,
    query_planes,
    widen,
)
from kernels.decoupled.triton_parts import (
    null_score,
    plain_values,
    scores,
    seed_values,
    softmax_step,
    store_planes,
    values,
)
from kernels.device import ceil_div, interpreted, next_power_of_2

NullRows = tuple[Tensor, Tensor, Tensor]
"""k_sem, k_geo, v of the null token as [B, KVH, d] views (stride 0 where it is the same for every row)."""
Scratch = tuple[Tensor, Tensor, Tensor]
"""part_m, part_d fp32 [B*Hq, programs_of(..)] and part_o [.., V]."""
BITS = {"q4_0": 4, "q8_0": 8, "fp16": 16}
BLOCK = 64
"""Tokens of a block: two scales a lane are the 4 bytes that an asynchronous copy needs. Storage is a multiple of it."""
STAGES = 3
AHEAD = 2
"""Blocks that are asked of the L2 before the query is looked at."""

UNIT = tl.constexpr(2.0**24)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["KVH", "PARTITIONS"])
def decode_kernel(
    q_sem, q_geo, qs_b, qs_h, qs_d, qg_b, qg_h, qg_d,
    sem_codes, sem_scales, geo_codes, geo_scales, v_codes, v_scales,
    tail_sem, tail_geo, tail_v,
    null_sem, null_geo, null_v, ns_b, ns_h, ns_d, ng_b, ng_h, ng_d, nv_b, nv_h, nv_d,
    lengths, packed, part_m, part_d, part_o, out, lse,
    KVH, SLOTS, PARTITIONS,
    SEM: tl.constexpr, GEO: tl.constexpr, V: tl.constexpr, DS: tl.constexpr, DG: tl.constexpr, DV: tl.constexpr,
    G: tl.constexpr, R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    NT: tl.constexpr,
    HAS_NULL: tl.constexpr, ONE_PASS: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, NORM: tl.constexpr,
    AHEAD: tl.constexpr, HAS_PREFIX: tl.constexpr,
):  # fmt: skip
    """Grid (B * KVH, PARTITIONS); PARTITIONS = 1 with ONE_PASS. SEM, GEO, V: 4, 8 or 16 bits.

    Program p takes blocks p, p + PARTITIONS, ... of the tail and of the quantized part. 2-pass: it writes m (log2), d
    and o (not divided) to part_* [B*Hq, PARTITIONS, (DV)]; m = -inf, d = 0, o = 0 where it saw nothing. ONE_PASS: the
    null token is the initial state; out [B*Hq, DV] and lse are written.
    """
    S: tl.constexpr = 8 if (M == 16 and G <= 8) else M  # rows of the softmax: 8 to 15 of a 16-row tile are padding
    # P times a scale of v is an fp16 operand: the larger the power of two in it, the fewer tokens of little weight fall
    # below 2^-14, where fp16 rounds coarsely. A scale of q4_0 is at most 65504 / 7, one of q8_0 65504 / 127.
    SHIFT: tl.constexpr = 2 if V == 4 else (6 if V == 8 else 0)
    # Scores are in units of 2^-24 (times nf) where a key part is coded, of 1 otherwise; f brings them to log2.
    PLAIN: tl.constexpr = 1.0 if SEM == 16 and GEO == 16 else 1.0 / UNIT
    SP: tl.constexpr = triton.next_power_of_2(max(DS, 16))
    GP: tl.constexpr = triton.next_power_of_2(max(DG, 16))
    VP: tl.constexpr = triton.next_power_of_2(max(DV, 16))
    if PDL:
        tl.extra.cuda.gdc_wait()  # for what the launch before this one writes: lengths, cache, q; it reads the scratch
        tl.extra.cuda.gdc_launch_dependents()  # the next launch may be put in place; it waits for our end itself
    bh = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    b = bh // KVH
    h = bh % KVH
    stored = tl.load(packed + b)
    row = tl.arange(0, S)
    qs = (q_sem + b * qs_b + h * G * qs_h, qs_h, qs_d)
    qg = (q_geo + b * qg_b + h * G * qg_h, qg_h, qg_d)

    # Partitions take the full blocks in turn; the block that ends within is the one after them.
    full = stored // N
    ragged = (stored % N > 0) & (full % PARTITIONS == part)
    if ASM and HAS_PREFIX:
        for ahead in tl.static_range(AHEAD):
            block = part + ahead * PARTITIONS
            prefetch_part(sem_codes, sem_scales, bh, block * N, block < full, SLOTS, SEM, DS, N)
            prefetch_part(geo_codes, geo_scales, bh, block * N, block < full, SLOTS, GEO, DG, N)
            prefetch_part(v_codes, v_scales, bh, block * N, block < full, SLOTS, V, DV, N)

    if NORM:
        nf_S, back = power_of_two_scale(tl.maximum(largest(qs, G, DS, S), largest(qg, G, DG, S)))
    else:
        nf_S = tl.full((S,), 1.0, tl.float32)
        back = nf_S
    f = back * (LOG2E / PLAIN)
    nf = widen(nf_S, M, S)
    sem_planes, sem_zeros = query_planes(qs, nf, SEM, G, DS, M, S, NORM)
    geo_planes, geo_zeros = query_planes(qg, nf, GEO, G, DG, M, S, NORM)
    q_nat_sem = load_q(qs, tl.arange(0, SP), nf, G, DS, M, NORM)
    q_nat_geo = load_q(qg, tl.arange(0, GP), nf, G, DG, M, NORM)

    m = tl.full((S,), -float("inf"), tl.float32)
    d = tl.zeros((S,), tl.float32)
    if HAS_NULL and ONE_PASS:
        null_k_s = (null_sem + b * ns_b + h * ns_h, ns_d)
        null_k_g = (null_geo + b * ng_b + h * ng_h, ng_d)
        m = null_score(qs, qg, null_k_s, null_k_g, nf_S, G, DS, DG, S) * PLAIN
        d = d + 2.0**SHIFT
        acc = seed_values((null_v + b * nv_b + h * nv_h, nv_d), 2.0**SHIFT, V, DV, VP, M, True)
    else:
        acc = seed_values((part_o, 0), 1.0, V, DV, VP, M, False)

    if R > 0:
        # The tail, token by token of the ring: each program its share, in blocks of NT.
        fresh = tl.load(lengths + b) - stored
        start = stored % R
        for i in tl.range(part, (fresh + NT - 1) // NT, PARTITIONS, num_stages=1):
            k = i * NT + tl.arange(0, NT)
            seen = k < fresh
            n = (start + k) % R
            at = bh * R
            new_sem = load_rows(tail_sem + at * DS, n, seen, DS, SP)
            new_geo = load_rows(tail_geo + at * DG, n, seen, DG, GP)
            s = tl.dot(q_nat_geo, tl.trans(new_geo), tl.dot(q_nat_sem, tl.trans(new_sem)))
            s = narrow(s, M, S, NT) * PLAIN
            s = tl.where(seen[None, :], s, -float("inf"))
            p, m, d, r = softmax_step(s, m, d, f, SHIFT)
            acc = plain_values(acc, p, r, tail_v + at * DV, n, DV, seen, V, DV, VP, M, S, NT)

    if HAS_PREFIX:  # without, `reduce_kernel` sees to rows that have one
        for i in range(part, full, PARTITIONS):
            n = i * N + tl.arange(0, N)
            s = tl.zeros((S, N), tl.float32)
            s = scores(s, q_nat_sem, sem_planes, sem_zeros, sem_codes, sem_scales, bh, n, None, SLOTS,
                       SEM, DS, SP, M, S, N, PLAIN, ASM)  # fmt: skip
            s = scores(s, q_nat_geo, geo_planes, geo_zeros, geo_codes, geo_scales, bh, n, None, SLOTS,
                       GEO, DG, GP, M, S, N, PLAIN, ASM)  # fmt: skip
            p, m, d, r = softmax_step(s, m, d, f, SHIFT)
            acc = values(acc, p, r, v_codes, v_scales, bh, n, None, SLOTS, V, DV, VP, M, S, N, ASM)
        if ragged:
            n = full * N + tl.arange(0, N)
            seen = n < stored
            s = tl.zeros((S, N), tl.float32)
            s = scores(s, q_nat_sem, sem_planes, sem_zeros, sem_codes, sem_scales, bh, n, seen, SLOTS,
                       SEM, DS, SP, M, S, N, PLAIN, ASM)  # fmt: skip
            s = scores(s, q_nat_geo, geo_planes, geo_zeros, geo_codes, geo_scales, bh, n, seen, SLOTS,
                       GEO, DG, GP, M, S, N, PLAIN, ASM)  # fmt: skip
            s = tl.where(seen[None, :], s, -float("inf"))
            p, m, d, r = softmax_step(s, m, d, f, SHIFT)
            acc = values(acc, p, r, v_codes, v_scales, bh, n, seen, SLOTS, V, DV, VP, M, S, N, ASM)

    rows = row < G
    head = bh * G + row
    if ONE_PASS:
        some = tl.where(d == 0.0, 1.0, d)
        inv = tl.where(d == 0.0, 0.0, 1.0 / some)
        store_planes(acc, out, widen(head, M, S) * DV, widen(inv, M, S), tl.arange(0, M) < G, V, DV, VP, M)
        tl.store(lse + head, tl.where(d == 0.0, -float("inf"), (m * f - SHIFT + tl.log2(some)) * LN2), mask=rows)
    else:
        slot = head * PARTITIONS + part
        tl.store(part_m + slot, m * f - SHIFT, mask=rows)
        tl.store(part_d + slot, d, mask=rows)
        one = tl.full((M,), 1.0, tl.float32)
        store_planes(acc, part_o, widen(slot, M, S) * DV, one, tl.arange(0, M) < G, V, DV, VP, M)


def launch(
    q_sem: Tensor,
    q_geo: Tensor,
    cache: QuantizedCache,
    null: NullRows | None,
    scratch: Scratch,
    out: Tensor,
    lse: Tensor,
    *,
    passes: int,
    partitions: int,
    stages: int = STAGES,
    registers: int | None = None,
    overlap: bool = True,
    ahead: int = AHEAD,
) -> None:
    """q_sem [B,Hq,S], q_geo [B,Hq,G] and the cache to `scratch` (2-pass) or to out [B,Hq,V] and lse [B,Hq] (1-pass)."""
    batch, q_heads, _ = q_sem.shape
    options: dict[str, object] = {"maxnreg": registers} if registers else {}
    pdl = overlap and overlaps(q_sem)
    if pdl:
        options["launch_pdl"] = True
    tail = cache.policy.resid
    programs = 1 if passes == 1 else programs_of(partitions, tail)
    if programs == 0:
        return
    group = q_heads // cache.kv_heads
    one_pass = passes == 1
    seed = null if one_pass else None
    sem, geo, v = cache.parts
    decode_kernel[(batch * cache.kv_heads, programs)](
        q_sem, q_geo, *q_sem.stride(), *q_geo.stride(),
        _stored(sem, words=False), sem.scales, _stored(geo, words=False), geo.scales, _stored(v, words=True), v.scales,
        *(cache.tails if tail else (None, None, None)), *null_arguments(seed),
        cache.lengths, cache.packed, *((None, None, None) if one_pass else scratch),
        out if one_pass else None, lse if one_pass else None,
        cache.kv_heads, slots_of(sem), programs,
        SEM=BITS[sem.kind], GEO=BITS[geo.kind], V=BITS[v.kind], DS=sem.dim, DG=geo.dim, DV=v.dim, G=group, R=tail,
        M=max(16, next_power_of_2(group)), N=BLOCK, NT=tail_block(tail, programs),
        HAS_NULL=seed is not None, ONE_PASS=one_pass, ASM=not interpreted(), PDL=pdl, NORM=q_sem.dtype != torch.float16,
        AHEAD=ahead if overlaps(q_sem) else 0, HAS_PREFIX=one_pass or partitions > 0,
        num_warps=1, num_stages=stages, **options,
    )  # fmt: skip


def programs_of(partitions: int, resid: int) -> int:
    """Programs a (row, KV head) in two passes: one for each partition; one for the tail where there is no partition."""
    return max(partitions, int(resid > 0))


def tail_block(resid: int, programs: int) -> int:
    """Tokens of a block of the tail: a program's share of a full ring, 16 to 64."""
    return min(64, max(16, next_power_of_2(ceil_div(max(resid, 1), programs))))


def overlaps(x: Tensor) -> bool:
    """Whether a kernel can be put in place while the one before it still runs (programmatic dependent launch). It came
    with SM 9.0, as did the instruction that asks the L2 for blocks ahead."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)


def _stored(part: Part, *, words: bool) -> Tensor:
    """What the kernel reads of a part: fp16 values, bytes, or 16-bit words (q8_0, and values in 4 bits)."""
    if part.values is not None:
        return part.values
    assert part.codes is not None
    return part.codes.view(torch.int16) if words or part.kind == "q8_0" else part.codes


def slots_of(part: Part) -> int:
    """Storage slots of a part (a multiple of BLOCK)."""
    stored = part.values if part.scales is None else part.scales
    assert stored is not None
    return stored.shape[2] if part.scales is None else stored.shape[3]


def null_arguments(null: NullRows | None) -> tuple[object, ...]:
    """Pointers, then strides (row, head, element) of the three; None in place of every one when there is no null token,
    so that nothing of it is in the compiled kernel's signature."""
    if null is None:
        return (None,) * 12
    return (*null, *(s for x in null for s in x.stride()))
