"""Scores, softmax and values of one block of tokens, for parts in 4 bits, 8 bits or fp16; and the null token.

The result o of a q4_0 part is kept as planes, since a 16-bit word holds elements 2j, 2j+16, 2j+1, 2j+17 of its group:
acc = (plane 0..3, ones) for each group. A group's scale multiplies P, not V, and the zero point is one more column:
o = P n - z P 1, with the same rounded P, so that the rounding of P weighs (n - z) and not n. q8_0: (elements 2j, 2j+1,
ones). fp16: one tile. Called by `triton_decode` (and `null_score` by `triton_reduce`).

Shape letters as in `triton_codes`; W 16-bit words of a group, G groups (in `decode_kernel`: query heads of a KV head).
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton's language has no * in a tuple)
from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoupled.triton_codes import (
    UNIT,
    bytes_of_words,
    load,
    load_rows,
    narrow,
    nibbles_of_bytes,
    nibbles_of_words,
    widen,
)


@triton.jit
def scores(
    s, q, planes, zeros, codes, scales, bh, n, seen, SLOTS,
    KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
    PLAIN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """s [S, N] += q . k of one part over tokens n [N]; `q` is the query in its natural order (fp16 parts)."""
    if KIND == 16:
        k = load_rows(codes + bh * SLOTS * D, n, seen, D, DP)
        s += narrow(tl.dot(q, tl.trans(k)), M, S, N) * PLAIN
    else:
        G: tl.constexpr = (D + 31) // 32
        e = tl.arange(0, 16)
        for g in tl.static_range(G):
            at = (bh * G + g) * SLOTS
            scale = load(scales + at + n, seen).to(tl.float32)
            x = load(codes + at * 16 + (n * 16)[:, None] + e[None, :], seen)
            if KIND == 4:
                lo, hi = nibbles_of_bytes(x, ASM)
                s_lo = narrow(tl.dot(planes[2 * g], tl.trans(lo)), M, S, N)
                s_hi = narrow(tl.dot(planes[2 * g + 1], tl.trans(hi)), M, S, N)
                acc = s_hi * 0.0625 + s_lo
            else:
                lo, hi = bytes_of_words(x, ASM)
                acc = narrow(tl.dot(planes[2 * g + 1], tl.trans(hi), tl.dot(planes[2 * g], tl.trans(lo))), M, S, N)
            s += (acc + zeros[g][:, None]) * scale[None, :]
    return s


@triton.jit
def softmax_step(s, m, d, f, SHIFT: tl.constexpr):
    """One step of the online softmax in base 2; f [S] > 0 turns scores into log2. Returns p, m, d, the rescale r.

    p, d (and what comes of p) are 2^SHIFT times what m says: see SHIFT in `decode_kernel`. r is exactly 1 while m
    stays: m f - top f in one fma would leave the rounding of top f, and 2000 blocks would multiply by it.
    """
    top = tl.maximum(m, tl.max(s, 1))
    some = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(s * f[:, None] - (some * f - SHIFT)[:, None])
    r = tl.exp2((m - some) * f)
    return p, top, d * r + tl.sum(p, 1), r


@triton.jit
def block_dot(p, v):
    """p . v from zero. Nonzero `max_num_imprecise_acc` keeps the compiler from adding a sum to the dot's own."""
    return tl.dot(p, v, max_num_imprecise_acc=1)


@triton.jit
def values(
    acc, p, r, codes, scales, bh, n, seen, SLOTS,
    KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """acc (tuple of planes [M, ..]) = acc * r + p . v over tokens n; p [S, N], r [S].

    The tensor core cuts its fp32 sums off instead of rounding them, which over thousands of tokens is a drift: it adds
    up one block, from zero, and the blocks are added up outside.
    """
    new = ()
    r = widen(r, M, S)
    if KIND == 16:
        v = load_rows(codes + bh * SLOTS * D, n, seen, D, DP)
        new = new + (acc[0] * r[:, None] + block_dot(widen(p.to(tl.float16), M, S), v),)
    else:
        G: tl.constexpr = (D + 31) // 32
        W: tl.constexpr = 8 if KIND == 4 else 16
        w = tl.arange(0, W)
        ones = tl.full((N, W), 1.0, tl.float16)
        for g in tl.static_range(G):
            at = (bh * G + g) * SLOTS
            x = load(codes + at * W + (n * W)[:, None] + w[None, :], seen)
            scale = load(scales + at + n, seen).to(tl.float32)
            pg = widen((p * scale[None, :]).to(tl.float16), M, S)
            if KIND == 4:
                v0, v1, v2, v3 = nibbles_of_words(x, ASM)
                new = new + (
                    acc[5 * g] * r[:, None] + block_dot(pg, v0),
                    acc[5 * g + 1] * r[:, None] + block_dot(pg, v1),
                    acc[5 * g + 2] * r[:, None] + block_dot(pg, v2),
                    acc[5 * g + 3] * r[:, None] + block_dot(pg, v3),
                    acc[5 * g + 4] * r[:, None] + block_dot(pg, ones),
                )
            else:
                v0, v1 = bytes_of_words(x, ASM)
                new = new + (
                    acc[3 * g] * r[:, None] + block_dot(pg, v0),
                    acc[3 * g + 1] * r[:, None] + block_dot(pg, v1),
                    acc[3 * g + 2] * r[:, None] + block_dot(pg, ones),
                )
    return new


@triton.jit
def plain_values(
    acc, p, r, base, n, stride, seen,
    KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """acc = acc * r + p . v for fp16 v [.., D], whatever planes acc has (see `values`): the tail."""
    new = ()
    ph = widen(p.to(tl.float16), M, S)
    r = widen(r, M, S)
    if KIND == 16:
        d = tl.arange(0, DP)
        v = tl.load(base + (n * stride)[:, None] + d[None, :], mask=seen[:, None] & (d < D)[None, :], other=0.0)
        new = new + (acc[0] * r[:, None] + block_dot(ph, v),)
    else:
        E: tl.constexpr = 16 if KIND == 4 else 32
        e = tl.arange(0, E)
        for g in tl.static_range((D + 31) // 32):
            c = 32 * g + e
            v = tl.load(base + (n * stride)[:, None] + c[None, :], mask=seen[:, None] & (c < D)[None, :], other=0.0)
            even, odd = tl.split(tl.reshape(v, (N, E // 2, 2)))
            o_even = tl.dot(ph, even)
            o_odd = tl.dot(ph, odd)
            if KIND == 4:
                c += 16
                v = tl.load(base + (n * stride)[:, None] + c[None, :], mask=seen[:, None] & (c < D)[None, :], other=0.0)
                even, odd = tl.split(tl.reshape(v, (N, E // 2, 2)))
                new = new + (
                    acc[5 * g] * r[:, None] + o_even * (1.0 / UNIT),
                    acc[5 * g + 1] * r[:, None] + tl.dot(ph, even) * (16.0 / UNIT),
                    acc[5 * g + 2] * r[:, None] + o_odd * (1.0 / UNIT),
                    acc[5 * g + 3] * r[:, None] + tl.dot(ph, odd) * (16.0 / UNIT),
                    acc[5 * g + 4] * r[:, None],
                )
            else:
                new = new + (
                    acc[3 * g] * r[:, None] + o_even * (1.0 / UNIT),
                    acc[3 * g + 1] * r[:, None] + o_odd * (1.0 / UNIT),
                    acc[3 * g + 2] * r[:, None],
                )
    return new


@triton.jit
def seed_plane(v, at, PLANE: tl.constexpr, KIND: tl.constexpr, D: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """Plane PLANE (see above: elements 2j + 0, 16, 1, 17 of q4_0, 2j + 0, 1 of q8_0) of the group at element `at`."""
    if KIND == 4:
        c = at + 2 * tl.arange(0, W) + (PLANE % 2) * 16 + PLANE // 2
        unit = 16.0 / UNIT if PLANE % 2 == 1 else 1.0 / UNIT
    else:
        c = at + 2 * tl.arange(0, W) + PLANE
        unit = 1.0 / UNIT
    x = tl.load(v[0] + c * v[1], mask=c < D, other=0.0).to(tl.float32) * unit
    return tl.broadcast_to(x[None, :], (M, W))


@triton.jit
def seed_values(v, unit, KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, SEED: tl.constexpr):
    """The accumulators: `unit` times the null token's v (pointer, stride) in every row, or zeros; as in `values`."""
    acc = ()
    if KIND == 16:
        if SEED:
            d = tl.arange(0, DP)
            x = tl.load(v[0] + d * v[1], mask=d < D, other=0.0).to(tl.float32) * unit
            acc = acc + (tl.broadcast_to(x[None, :], (M, DP)),)
        else:
            acc = acc + (tl.zeros((M, DP), tl.float32),)
    else:
        W: tl.constexpr = 8 if KIND == 4 else 16
        nothing = tl.zeros((M, W), tl.float32)
        for g in tl.static_range((D + 31) // 32):
            for plane in tl.static_range(4 if KIND == 4 else 2):
                acc = acc + ((seed_plane(v, 32 * g, plane, KIND, D, M, W) * unit) if SEED else nothing,)
            acc = acc + (nothing,)
    return acc


@triton.jit
def store_planes(acc, out, row_at, inv, rows, KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr):
    """out[row_at + d] = acc * inv in natural order; rows [M] says which rows exist. acc as `values` leaves it."""
    if KIND == 16:
        d = tl.arange(0, DP)
        o = acc[0] * inv[:, None]
        tl.store(out + row_at[:, None] + d[None, :], o.to(out.dtype.element_ty), mask=rows[:, None] & (d < D)[None, :])
    else:
        for g in tl.static_range((D + 31) // 32):
            if KIND == 4:
                z = acc[5 * g + 4] * -8.0
                c = 32 * g + tl.arange(0, 16)
                lo = tl.reshape(tl.join(acc[5 * g] * UNIT + z, acc[5 * g + 2] * UNIT + z), (M, 16))
                hi = tl.join(acc[5 * g + 1] * (UNIT / 16.0) + z, acc[5 * g + 3] * (UNIT / 16.0) + z)
                hi = tl.reshape(hi, (M, 16)) * inv[:, None]
                tl.store(
                    out + row_at[:, None] + c[None, :] + 16,
                    hi.to(out.dtype.element_ty),
                    mask=rows[:, None] & (c + 16 < D)[None, :],
                )
            else:
                z = acc[3 * g + 2] * -128.0
                c = 32 * g + tl.arange(0, 32)
                lo = tl.reshape(tl.join(acc[3 * g] * UNIT + z, acc[3 * g + 1] * UNIT + z), (M, 32))
            lo = lo * inv[:, None]
            tl.store(
                out + row_at[:, None] + c[None, :], lo.to(out.dtype.element_ty), mask=rows[:, None] & (c < D)[None, :]
            )


@triton.jit
def null_score(q_sem, q_geo, k_sem, k_geo, nf, G: tl.constexpr, DS: tl.constexpr, DG: tl.constexpr, M: tl.constexpr):
    """[M]: the score of the null token, fp32, in the units of `scores` (nf); k_* = (pointer, stride)."""
    return plain_dot(q_sem, k_sem, nf, G, DS, M) + plain_dot(q_geo, k_geo, nf, G, DG, M)


@triton.jit
def plain_dot(q, k, nf, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr):
    DP: tl.constexpr = triton.next_power_of_2(D)
    row = tl.arange(0, M)
    d = tl.arange(0, DP)
    x = tl.load(q[0] + row[:, None] * q[1] + d[None, :] * q[2], mask=(row < G)[:, None] & (d < D)[None, :], other=0.0)
    y = tl.load(k[0] + d * k[1], mask=d < D, other=0.0).to(tl.float32)
    return tl.sum((x.to(tl.float32) * nf[:, None]) * y[None, :], 1)
