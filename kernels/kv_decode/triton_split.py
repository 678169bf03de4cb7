"""Split-KV attention forward in Triton: one program a (row of the batch, key/value head, tile of queries, split).

The query heads of a key/value head and the queries of a call are packed as the rows of one tile, so a key is read once
for all of them. Split s takes blocks s, s + SPLITS .. of the row's ACTUAL length, read on the device. Partial results
are merged in split order (deterministic) by a second launch. New tokens are read from where the caller has them, never
from the cache, so writing them to the cache in the same launch races with nobody.
Never recompiles as lengths grow; never reads a slot at or above a row's length. Called by `plan.py` only.

Letters: M rows of a tile (query * G + head in group), N keys of a tile, D and DV sizes of a key and a value.
Exponents are base 2. FLOOR (triton_merge.py) stands for "no key yet".
"""
# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.kv_decode.triton_merge import FLOOR, emit


@triton.jit
def _load(base, rows, stride_n, stride_d, keep, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [len(rows), BLOCK] at base; rows that are not kept and columns from DIM on (if DIM < BLOCK) are 0."""
    d = tl.arange(0, BLOCK)
    ptrs = base + rows[:, None] * stride_n + d[None, :] * stride_d
    if DIM >= BLOCK:
        return tl.load(ptrs, mask=keep[:, None], other=0.0)
    return tl.load(ptrs, mask=keep[:, None] & (d < DIM)[None, :], other=0.0)


@triton.jit
def _prefetch(base, stride_n, first, slots, DIM: tl.constexpr, BLOCK_N: tl.constexpr):
    """Ask for BLOCK_N rows of 2-byte values from `first` on to be brought into the L2, before it is known how many are
    valid: reads nothing, so what they hold does not matter; never beyond the cache's slots."""
    LINES: tl.constexpr = (DIM + 63) // 64
    i = tl.arange(0, BLOCK_N)
    row = tl.minimum(first + i, slots - 1).to(tl.int64)
    for line in tl.static_range(LINES):
        at = (base + row * stride_n + line * 64).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _store(base, rows, stride_n, stride_d, keep, tile, DIM: tl.constexpr, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)
    ptrs = base + rows[:, None] * stride_n + d[None, :] * stride_d
    tl.store(ptrs, tile, mask=keep[:, None] & (d < DIM)[None, :])


@triton.jit
def _scores(
    q_MD, base, n_N, stride_n, stride_d, keep_N, DIM: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """q . k over one piece of the head, from 0 (nonzero `max_num_imprecise_acc`: the compiler adds no sum to it)."""
    k_ND = _load(base, n_N, stride_n, stride_d, keep_N, DIM, BLOCK)
    if WIDE:
        k_ND = k_ND.to(tl.float32)
    return tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee", max_num_imprecise_acc=1)


@triton.jit
def _stream(
    q, m_M, l_M, acc_MV, visible_M, scale, k, v, sk_n, sk_d, sv_n, sv_d, lo, hi, step,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, PIECE: tl.constexpr, BLOCK_DV: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Online softmax over blocks lo, lo + step .. of the keys below hi, on the tensor cores; row r sees keys below
    visible_M[r].

    The maximum is subtracted before the scale is applied: a rounded scale * s is wrong by 1e-3 at scores of 1e4.
    Tensor cores cut what they add to a large accumulator, always downwards: every block of keys sums from 0 and the
    sums meet in one fma; a score over more than 128 elements is the sum of PIECEs of it, q a tuple of as many tiles.
    """
    n_N = tl.arange(0, BLOCK_N)
    k_base = k + lo.to(tl.int64) * sk_n
    v_base = v + lo.to(tl.int64) * sv_n
    for start in tl.range(lo, hi, step, num_stages=STAGES):
        s_MN = _scores(q[0], k_base, n_N, sk_n, sk_d, start + n_N < hi, D, PIECE, WIDE)
        for i in tl.static_range(1, (D + PIECE - 1) // PIECE):
            part = k_base + i * PIECE * sk_d
            s_MN += _scores(q[i], part, n_N, sk_n, sk_d, start + n_N < hi, D - i * PIECE, PIECE, WIDE)
        v_NV = _load(v_base, n_N, sv_n, sv_d, start + n_N < hi, DV, BLOCK_DV)
        if WIDE:
            v_NV = v_NV.to(tl.float32)
        s_MN = tl.where((start + n_N)[None, :] < visible_M[:, None], s_MN, float("-inf"))
        new_M = tl.maximum(m_M, tl.max(s_MN, 1))
        p_MN = tl.exp2((s_MN - new_M[:, None]) * scale + SHIFT)
        alpha_M = tl.exp2((m_M - new_M) * scale)
        l_M = l_M * alpha_M + tl.sum(p_MN, 1)
        o_MV = tl.dot(p_MN.to(v_NV.dtype), v_NV, input_precision="ieee")
        acc_MV = tl.fma(acc_MV, tl.broadcast_to(alpha_M[:, None], acc_MV.shape), o_MV)
        m_M = new_M
        k_base += step * sk_n
        v_base += step * sv_n
    return m_M, l_M, acc_MV


@triton.jit
def _stream_one(
    q_D, scale, k, v, sk_n, sk_d, sv_n, sv_d, lo, hi, step,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    STAGES: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """The same for one row of queries, in fp32 without tensor cores: every slot of the tile keeps its own softmax
    state, so that threads meet only once, after the loop. Returns m, l, acc_V of the row.

    LONG: every 16 blocks l_N moves into sum_N (whose maximum is top_N) and starts anew: beside one key of weight 1,
    thousands of 2^-24 added one by one would come to nothing.
    """
    n_N = tl.arange(0, BLOCK_N)
    m_N = tl.full([BLOCK_N], FLOOR, tl.float32)
    l_N = tl.zeros([BLOCK_N], tl.float32)
    top_N, sum_N = m_N, l_N
    block = 0
    acc_NV = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    k_base = k + lo.to(tl.int64) * sk_n
    v_base = v + lo.to(tl.int64) * sv_n
    for start in tl.range(lo, hi, step, num_stages=STAGES):
        k_ND = _load(k_base, n_N, sk_n, sk_d, start + n_N < hi, D, BLOCK_D)
        v_NV = _load(v_base, n_N, sv_n, sv_d, start + n_N < hi, DV, BLOCK_DV)
        s_N = tl.sum(k_ND.to(tl.float32) * q_D[None, :], 1)
        s_N = tl.where(start + n_N < hi, s_N, float("-inf"))
        new_N = tl.maximum(m_N, s_N)
        alpha_N = tl.exp2((m_N - new_N) * scale)
        p_N = tl.exp2((s_N - new_N) * scale)
        l_N = l_N * alpha_N + p_N
        acc_NV = acc_NV * alpha_N[:, None] + p_N[:, None] * v_NV.to(tl.float32)
        m_N = new_N
        if LONG:
            block += 1
            if block % 16 == 0:
                sum_N = sum_N * tl.exp2((top_N - m_N) * scale) + l_N
                top_N, l_N = m_N, tl.zeros([BLOCK_N], tl.float32)
        k_base += step * sk_n
        v_base += step * sv_n
    if LONG:
        l_N += sum_N * tl.exp2((top_N - m_N) * scale)
    m = tl.max(m_N, 0)
    w_N = tl.exp2((m_N - m) * scale)
    return m, tl.sum(l_N * w_N, 0), tl.sum(acc_NV * w_N[:, None], 0)


@triton.jit
def _append_rows(src, dst, ss_n, ss_d, sd_n, sd_d, first, step, tokens, length, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Copy tokens first, first + step .. (16 at a time) of src to slots length + t of dst."""
    t_T = tl.arange(0, 16)
    for t0 in tl.range(first, tokens, step):
        keep_T = t0 + t_T < tokens
        tile = _load(src, (t0 + t_T).to(tl.int64), ss_n, ss_d, keep_T, DIM, BLOCK)
        _store(dst, (length + t0 + t_T).to(tl.int64), sd_n, sd_d, keep_T, tile, DIM, BLOCK)


@triton.jit(do_not_specialize=["kv_heads", "queries", "capacity"])
def split_kernel(
    q, k, v, k_new, v_new, out, lse, part_o, part_ml, lens, overflow,
    sq_b, sq_h, sq_s, sq_d, sk_b, sk_h, sk_n, sk_d, sv_b, sv_h, sv_n, sv_d,
    skn_b, skn_h, skn_s, skn_d, svn_b, svn_h, svn_s, svn_d, so_b, so_h, so_s, so_d,
    kv_heads, queries, capacity, scale,
    G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr, ONE: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_LENS: tl.constexpr, NEW: tl.constexpr, WRITE: tl.constexpr, HAS_LSE: tl.constexpr,
    WIDE: tl.constexpr, PDL_IN: tl.constexpr, PDL_OUT: tl.constexpr,
    PREFETCH: tl.constexpr, UNIT: tl.constexpr, NEGATE: tl.constexpr, SHIFT: tl.constexpr,
    PIECE: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """ONE: a single row, without tensor cores. NEW: 0 no new tokens, 1 one a row, 2 several.

    scale is in base 2 and positive (|softmax scale| * log2 e); NEGATE: the softmax scale is negative. Maxima are of the
    scores before the scale. Weights and their sums are times 2^SHIFT, which cancels: weights rounded to fp16 (to 65504)
    then lose nothing above 2^-39 of the largest. lens: valid keys before the call (without NEW: valid keys, all told).
    overflow int32[4]: row + 1, length, capacity, new tokens of the first row found that does not fit.
    WIDE: bf16 in the interpreter, which multiplies and rounds none: fp32 copies. PDL_IN, PDL_OUT: the launch
    before, after this one overlaps it.
    UNIT: strides of keys and values are given in it; 8 lets the compiler know that 16 bytes can be loaded at a time.
    What depends on no length is loaded first, so that its latency is that of the length; what nobody waits for
    (the new token's share, its writing, the flag) comes after the loop.
    """
    bh, split = tl.program_id(0), tl.program_id(2)
    m_tiles = tl.num_programs(1)
    tile_m = m_tiles - 1 - tl.program_id(1)  # the longest causal rows first
    b, h = bh // kv_heads, bh % kv_heads
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    first_row = tile_m * BLOCK_M
    total_rows = queries * G
    rows_M = first_row + tl.arange(0, BLOCK_M)
    query_M = rows_M // G
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    if PDL_IN:
        gdc_wait()

    given = capacity
    if HAS_LENS:
        given = tl.load(lens + b)
    k += (b64 * sk_b + h64 * sk_h) * UNIT
    v += (b64 * sv_b + h64 * sv_h) * UNIT
    sk_n, sv_n = sk_n * UNIT, sv_n * UNIT
    lo = split * BLOCK_N
    STEP: tl.constexpr = SPLITS * BLOCK_N
    if PREFETCH:
        _prefetch(k, sk_n, lo, capacity, D, BLOCK_N)
        _prefetch(v, sv_n, lo, capacity, DV, BLOCK_N)
    q += b64 * sq_b + h64 * G * sq_h
    if ONE:
        q_D = tl.load(q + d * sq_d, mask=d < D, other=0.0).to(tl.float32)
        if NEGATE:
            q_D = -q_D
    else:
        q_M = q + (rows_M % G).to(tl.int64) * sq_h + query_M.to(tl.int64) * sq_s
        q_tiles = ()
        for i in tl.static_range((D + PIECE - 1) // PIECE):
            e = i * PIECE + tl.arange(0, PIECE)
            keep_MD = (rows_M < total_rows)[:, None] & (e < D)[None, :]
            q_MD = tl.load(q_M[:, None] + e[None, :] * sq_d, mask=keep_MD, other=0.0)
            if NEGATE:
                q_MD = -q_MD
            if WIDE:
                q_MD = q_MD.to(tl.float32)
            q_tiles = q_tiles + (q_MD,)  # noqa: RUF005 (Triton's language has no * in a tuple)
    if NEW:
        k_new += (b64 * skn_b + h64 * skn_h) * UNIT
        v_new += (b64 * svn_b + h64 * svn_h) * UNIT
        skn_s, svn_s = skn_s * UNIT, svn_s * UNIT
    if NEW == 1:  # the last split has the new token
        mine = tl.where(split == SPLITS - 1, 1, 0)
        kn_D = tl.load(k_new + d * skn_d, mask=d < mine * D, other=0.0)
        vn_V = tl.load(v_new + dv * svn_d, mask=dv < mine * DV, other=0.0)

    fits = capacity >= 0
    if HAS_LENS:
        fits = (given >= 0) & (given <= capacity - (queries if WRITE else 0))
    length = tl.where(fits, given, 0).to(tl.int32)
    tokens = tl.where(fits, queries, 0)
    last_query = tl.minimum((first_row + BLOCK_M - 1) // G, queries - 1)
    visible_M = tl.zeros([BLOCK_M], tl.int32) + length
    border = length
    if CAUSAL and not NEW:
        visible_M = tl.minimum(length, length - queries + query_M + 1)
        border = tl.maximum(0, length - queries + last_query + 1)
    if ONE:
        m, total, acc_V = _stream_one(
            q_D, scale, k, v, sk_n, sk_d, sv_n, sv_d, lo, border, STEP, D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, STAGES,
            LONG,
        )  # fmt: skip
        m_M, l_M = tl.zeros([1], tl.float32) + m, tl.zeros([1], tl.float32) + total
        acc_MV = acc_V[None, :]
    else:
        m_M = tl.full([BLOCK_M], FLOOR, tl.float32)
        l_M = tl.zeros([BLOCK_M], tl.float32)
        acc_MV = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
        m_M, l_M, acc_MV = _stream(
            q_tiles, m_M, l_M, acc_MV, visible_M, scale, k, v, sk_n, sk_d, sv_n, sv_d, lo, border, STEP,
            D, DV, BLOCK_N, PIECE, BLOCK_DV, STAGES, WIDE, SHIFT,
        )  # fmt: skip
        if NEW == 2:
            seen_M = tl.zeros([BLOCK_M], tl.int32) + tokens
            end = tokens
            if CAUSAL:
                seen_M = tl.minimum(tokens, query_M + 1)
                end = tl.minimum(tokens, last_query + 1)
            m_M, l_M, acc_MV = _stream(
                q_tiles, m_M, l_M, acc_MV, seen_M, scale, k_new, v_new, skn_s, skn_d, svn_s, svn_d, lo, end, STEP,
                D, DV, BLOCK_N, PIECE, BLOCK_DV, STAGES, WIDE, SHIFT,
            )  # fmt: skip
    if PDL_OUT:
        gdc_launch_dependents()

    if NEW == 1:
        if ONE:
            s_M = tl.zeros([1], tl.float32) + tl.sum(q_D * kn_D.to(tl.float32), 0)
        else:
            s_M = tl.zeros([BLOCK_M], tl.float32)
            for i in tl.static_range((D + PIECE - 1) // PIECE):
                kn_E = kn_D
                if PIECE < BLOCK_D:
                    e = i * PIECE + tl.arange(0, PIECE)
                    kn_E = tl.load(k_new + e * skn_d, mask=e < mine * D, other=0.0)
                s_M += tl.sum(q_tiles[i].to(tl.float32) * kn_E.to(tl.float32)[None, :], 1)
        s_M = tl.where((split == SPLITS - 1) & (tokens > 0), s_M, float("-inf"))
        top_M = tl.maximum(m_M, s_M)
        w_M, p_M = tl.exp2((m_M - top_M) * scale), tl.exp2((s_M - top_M) * scale + SHIFT)
        m_M, l_M = top_M, l_M * w_M + p_M
        acc_MV = acc_MV * w_M[:, None] + p_M[:, None] * vn_V.to(tl.float32)[None, :]
        if WRITE:
            slot = length.to(tl.int64)
            write = tl.where((split == SPLITS - 1) & (tile_m == 0) & (tokens > 0), 1, 0)
            tl.store(k + slot * sk_n + d * sk_d, kn_D, mask=d < write * D)
            tl.store(v + slot * sv_n + dv * sv_d, vn_V, mask=dv < write * DV)
    elif WRITE:
        first, step = (tile_m * SPLITS + split) * 16, m_tiles * SPLITS * 16
        _append_rows(k_new, k, skn_s, skn_d, sk_n, sk_d, first, step, tokens, length, D, BLOCK_D)
        _append_rows(v_new, v, svn_s, svn_d, sv_n, sv_d, first, step, tokens, length, DV, BLOCK_DV)

    keep_M = rows_M < total_rows
    if SPLITS == 1:
        emit(m_M, l_M, acc_MV, scale, rows_M, keep_M, b, h * G, queries, kv_heads, out, lse, so_b, so_h, so_s, so_d,
             G, DV, BLOCK_DV, HAS_LSE, WIDE, SHIFT)  # fmt: skip
    else:
        r_M = tl.arange(0, BLOCK_M)
        at = (bh * m_tiles + tile_m).to(tl.int64) * SPLITS + split
        tl.store(part_ml + at * 2 * BLOCK_M + r_M, m_M, mask=keep_M)
        tl.store(part_ml + at * 2 * BLOCK_M + BLOCK_M + r_M, l_M, mask=keep_M)
        o_ptrs = part_o + at * BLOCK_M * BLOCK_DV + r_M[:, None] * BLOCK_DV + dv[None, :]
        tl.store(o_ptrs, acc_MV, mask=(keep_M & (l_M != 0.0))[:, None] & (dv < DV)[None, :])
    if HAS_LENS:  # noqa: SIM102 (a constant: compiled out)
        if (not fits) & (h == 0) & (tile_m == 0) & (split == 0):
            was = tl.atomic_cas(overflow, 0, b + 1)
            if was == 0:
                tl.store(overflow + 1, given.to(tl.int32))
                tl.store(overflow + 2, capacity)
                tl.store(overflow + 3, queries if WRITE else 0)
