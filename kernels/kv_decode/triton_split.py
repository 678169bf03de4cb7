"""Split-KV attention forward in Triton: one program a (row of the batch, key/value head, tile of queries, split).

The query heads of a key/value head and the queries of a call are packed as the rows of one tile, so a key is read once
for all of them. A split takes its share of the row's ACTUAL length, read on the device. Partial results are merged in
split order (deterministic) by the program that arrives last, or by a second launch. New tokens are read from where
the caller has them, never from the cache, so writing them to the cache in the same launch races with nobody.
Never recompiles as lengths grow; never reads a slot at or above a row's length. Called by `plan.py` only.

Letters: M rows of a tile (query * G + head in group), N keys of a tile, D and DV sizes of a key and a value.
Exponents are base 2. FLOOR (triton_merge.py) stands for "no key yet".
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from kernels.kv_decode.triton_merge import FLOOR, combine, emit


@triton.jit
def _load(base, rows, stride_n, stride_d, keep, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [len(rows), BLOCK] at base; rows that are not kept and columns from DIM on are 0."""
    d = tl.arange(0, BLOCK)
    ptrs = base + rows[:, None] * stride_n + d[None, :] * stride_d
    if DIM == BLOCK:
        return tl.load(ptrs, mask=keep[:, None], other=0.0)
    return tl.load(ptrs, mask=keep[:, None] & (d < DIM)[None, :], other=0.0)


@triton.jit
def _store(base, rows, stride_n, stride_d, keep, tile, DIM: tl.constexpr, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)
    ptrs = base + rows[:, None] * stride_n + d[None, :] * stride_d
    tl.store(ptrs, tile, mask=keep[:, None] & (d < DIM)[None, :])


@triton.jit
def _stream(
    q_MD, m_M, l_M, acc, visible_M, scale, k, v, sk_n, sk_d, sv_n, sv_d, lo, hi,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys lo..hi-1 on the tensor cores; row r sees keys below visible_M[r].

    SWAP: keys are the left operand (S^T = K q^T, acc^T = V^T P^T), so a warp group splits the long side.
    """
    n_N = tl.arange(0, BLOCK_N)
    k_base = k + lo.to(tl.int64) * sk_n
    v_base = v + lo.to(tl.int64) * sv_n
    for start in tl.range(lo, hi, BLOCK_N, num_stages=STAGES):
        k_ND = _load(k_base, n_N, sk_n, sk_d, start + n_N < hi, D, BLOCK_D)
        v_NV = _load(v_base, n_N, sv_n, sv_d, start + n_N < hi, DV, BLOCK_DV)
        if WIDE:
            k_ND, v_NV = k_ND.to(tl.float32), v_NV.to(tl.float32)
        if SWAP:
            s_NM = tl.dot(k_ND, tl.trans(q_MD), input_precision="ieee") * scale
            s_NM = tl.where((start + n_N)[:, None] < visible_M[None, :], s_NM, float("-inf"))
            new_M = tl.maximum(m_M, tl.max(s_NM, 0))
            p_NM = tl.exp2(s_NM - new_M[None, :])
            alpha_M = tl.exp2(m_M - new_M)
            l_M = l_M * alpha_M + tl.sum(p_NM, 0)
            acc = tl.dot(tl.trans(v_NV), p_NM.to(v_NV.dtype), acc * alpha_M[None, :], input_precision="ieee")
        else:
            s_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale
            s_MN = tl.where((start + n_N)[None, :] < visible_M[:, None], s_MN, float("-inf"))
            new_M = tl.maximum(m_M, tl.max(s_MN, 1))
            p_MN = tl.exp2(s_MN - new_M[:, None])
            alpha_M = tl.exp2(m_M - new_M)
            l_M = l_M * alpha_M + tl.sum(p_MN, 1)
            acc = tl.dot(p_MN.to(v_NV.dtype), v_NV, acc * alpha_M[:, None], input_precision="ieee")
        m_M = new_M
        k_base += BLOCK_N * sk_n
        v_base += BLOCK_N * sv_n
    return m_M, l_M, acc


@triton.jit
def _stream_one(
    q_D, k, v, sk_n, sk_d, sv_n, sv_d, lo, hi,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The same for one row of queries, in fp32 without tensor cores: every slot of the tile keeps its own softmax
    state, so that threads meet only once, after the loop. q_D is already scaled. Returns m, l, acc_V of the row."""
    n_N = tl.arange(0, BLOCK_N)
    m_N = tl.full([BLOCK_N], FLOOR, tl.float32)
    l_N = tl.zeros([BLOCK_N], tl.float32)
    acc_NV = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    k_base = k + lo.to(tl.int64) * sk_n
    v_base = v + lo.to(tl.int64) * sv_n
    for start in tl.range(lo, hi, BLOCK_N, num_stages=STAGES):
        k_ND = _load(k_base, n_N, sk_n, sk_d, start + n_N < hi, D, BLOCK_D)
        v_NV = _load(v_base, n_N, sv_n, sv_d, start + n_N < hi, DV, BLOCK_DV)
        s_N = tl.sum(k_ND.to(tl.float32) * q_D[None, :], 1)
        s_N = tl.where(start + n_N < hi, s_N, float("-inf"))
        new_N = tl.maximum(m_N, s_N)
        alpha_N = tl.exp2(m_N - new_N)
        p_N = tl.exp2(s_N - new_N)
        l_N = l_N * alpha_N + p_N
        acc_NV = acc_NV * alpha_N[:, None] + p_N[:, None] * v_NV.to(tl.float32)
        m_N = new_N
        k_base += BLOCK_N * sk_n
        v_base += BLOCK_N * sv_n
    m = tl.max(m_N, 0)
    w_N = tl.exp2(m_N - m)
    return m, tl.sum(l_N * w_N, 0), tl.sum(acc_NV * w_N[:, None], 0)


@triton.jit
def _append_rows(
    src, dst, ss_n, ss_d, sd_n, sd_d, first, step, tokens, length,
    DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Copy tokens first, first + step .. (BLOCK_T at a time) of src to slots length + t of dst."""
    t_T = tl.arange(0, BLOCK_T)
    for t0 in tl.range(first, tokens, step):
        keep_T = t0 + t_T < tokens
        tile = _load(src, (t0 + t_T).to(tl.int64), ss_n, ss_d, keep_T, DIM, BLOCK)
        _store(dst, (length + t0 + t_T).to(tl.int64), sd_n, sd_d, keep_T, tile, DIM, BLOCK)


@triton.jit(do_not_specialize=["kv_heads", "queries", "capacity"])
def split_kernel(
    q, k, v, k_new, v_new, out, lse, part_o, part_ml, arrived, lens, overflow,
    sq_b, sq_h, sq_s, sq_d, sk_b, sk_h, sk_n, sk_d, sv_b, sv_h, sv_n, sv_d,
    skn_b, skn_h, skn_s, skn_d, svn_b, svn_h, svn_s, svn_d, so_b, so_h, so_s, so_d,
    kv_heads, queries, capacity, scale,
    G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, SPLITS: tl.constexpr, SPLITS_POW2: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, FORM: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_LENS: tl.constexpr, NEW: tl.constexpr, WRITE: tl.constexpr, HAS_LSE: tl.constexpr, LAST: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """FORM: "dot", "swap" or "one". NEW: 0 no new tokens, 1 one a row, 2 several. LAST: the last program combines.
    WIDE: products of fp32 copies (the interpreter multiplies no bf16).

    scale is in base 2 (softmax scale * log2 e). lens: valid keys before the call (without NEW: valid keys, all told).
    overflow int32[4]: row + 1, length, capacity, new tokens of the first row found that does not fit.
    """
    bh, split = tl.program_id(0), tl.program_id(2)
    m_tiles = tl.num_programs(1)
    tile_m = m_tiles - 1 - tl.program_id(1)  # the longest causal rows first
    b, h = bh // kv_heads, bh % kv_heads
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    length = capacity
    fits = capacity >= 0
    if HAS_LENS:
        given = tl.load(lens + b)
        fits = (given >= 0) & (given + (queries if WRITE else 0) <= capacity)
        length = tl.where(fits, given, 0).to(tl.int32)
        if (not fits) & (h == 0) & (tl.program_id(1) == 0) & (split == 0):
            was = tl.atomic_cas(overflow, 0, b + 1)
            if was == 0:
                tl.store(overflow + 1, given.to(tl.int32))
                tl.store(overflow + 2, capacity)
                tl.store(overflow + 3, queries if WRITE else 0)
    tokens = tl.where(fits, queries, 0)

    k += b64 * sk_b + h64 * sk_h
    v += b64 * sv_b + h64 * sv_h
    if NEW:
        k_new += b64 * skn_b + h64 * skn_h
        v_new += b64 * svn_b + h64 * svn_h
    if WRITE:
        T: tl.constexpr = 1 if NEW == 1 else 16
        first, step = (tl.program_id(1) * SPLITS + split) * T, m_tiles * SPLITS * T
        _append_rows(k_new, k, skn_s, skn_d, sk_n, sk_d, first, step, tokens, length, D, BLOCK_D, T)
        _append_rows(v_new, v, svn_s, svn_d, sv_n, sv_d, first, step, tokens, length, DV, BLOCK_DV, T)

    first_row = tile_m * BLOCK_M
    total_rows = queries * G
    rows_M = first_row + tl.arange(0, BLOCK_M)
    query_M = rows_M // G
    last_query = tl.minimum((first_row + BLOCK_M - 1) // G, queries - 1)
    visible_M = tl.zeros([BLOCK_M], tl.int32) + length
    border = length
    if CAUSAL and not NEW:
        visible_M = tl.minimum(length, length - queries + query_M + 1)
        border = tl.maximum(0, length - queries + last_query + 1)
    blocks = tl.cdiv(border, BLOCK_N)
    lo = (split * blocks) // SPLITS * BLOCK_N
    hi = tl.minimum(((split + 1) * blocks) // SPLITS * BLOCK_N, border)

    q_base = q + b64 * sq_b + h64 * G * sq_h
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    has_seed = (split == SPLITS - 1) & (tokens > 0)
    seeds = tl.where(has_seed, 1, 0)
    if FORM == "one":
        q_D = tl.load(q_base + d * sq_d, mask=d < D, other=0.0).to(tl.float32) * scale
        m, total, acc_V = _stream_one(
            q_D, k, v, sk_n, sk_d, sv_n, sv_d, lo, hi, D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, STAGES
        )
        if NEW:
            kn_D = tl.load(k_new + d * skn_d, mask=d < seeds * D, other=0.0).to(tl.float32)
            vn_V = tl.load(v_new + dv * svn_d, mask=dv < seeds * DV, other=0.0).to(tl.float32)
            s = tl.where(has_seed, tl.sum(q_D * kn_D, 0), float("-inf"))
            top = tl.maximum(m, s)
            w, p = tl.exp2(m - top), tl.exp2(s - top)
            m, total, acc_V = top, total * w + p, acc_V * w + p * vn_V
        m_M, l_M = tl.zeros([1], tl.float32) + m, tl.zeros([1], tl.float32) + total
        acc_MV = acc_V[None, :]
    else:
        q_ptrs = q_base + ((rows_M % G).to(tl.int64) * sq_h + query_M.to(tl.int64) * sq_s)[:, None] + d[None, :] * sq_d
        q_MD = tl.load(q_ptrs, mask=(rows_M < total_rows)[:, None] & (d < D)[None, :], other=0.0)
        if WIDE:
            q_MD = q_MD.to(tl.float32)
        SWAP: tl.constexpr = FORM == "swap"
        m_M = tl.full([BLOCK_M], FLOOR, tl.float32)
        l_M = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_DV, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_DV], tl.float32)
        if NEW == 1:  # the new token seeds the state of the last split
            kn_D = tl.load(k_new + d * skn_d, mask=d < seeds * D, other=0.0).to(tl.float32)
            vn_V = tl.load(v_new + dv * svn_d, mask=dv < seeds * DV, other=0.0).to(tl.float32)
            s_M = tl.sum(q_MD.to(tl.float32) * kn_D[None, :], 1) * scale
            m_M = tl.where(has_seed, s_M, m_M)
            l_M = tl.where(has_seed, 1.0, l_M)
            acc += vn_V[:, None] if SWAP else vn_V[None, :]
        m_M, l_M, acc = _stream(
            q_MD, m_M, l_M, acc, visible_M, scale, k, v, sk_n, sk_d, sv_n, sv_d, lo, hi,
            D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, STAGES, SWAP, WIDE,
        )  # fmt: skip
        if NEW == 2:
            seen_M = tl.zeros([BLOCK_M], tl.int32) + tokens
            end = tokens
            if CAUSAL:
                seen_M = tl.minimum(tokens, query_M + 1)
                end = tl.minimum(tokens, last_query + 1)
            new_blocks = tl.cdiv(end, BLOCK_N)
            t_lo = (split * new_blocks) // SPLITS * BLOCK_N
            t_hi = tl.minimum(((split + 1) * new_blocks) // SPLITS * BLOCK_N, end)
            m_M, l_M, acc = _stream(
                q_MD, m_M, l_M, acc, seen_M, scale, k_new, v_new, skn_s, skn_d, svn_s, svn_d, t_lo, t_hi,
                D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, STAGES, SWAP, WIDE,
            )  # fmt: skip
        acc_MV = tl.trans(acc) if SWAP else acc

    keep_M = rows_M < total_rows
    if SPLITS == 1:
        emit(m_M, l_M, acc_MV, rows_M, keep_M, b, h * G, queries, kv_heads, out, lse, so_b, so_h, so_s, so_d,
              G, DV, BLOCK_DV, HAS_LSE)  # fmt: skip
    else:
        r_M = tl.arange(0, BLOCK_M)
        tile = bh * m_tiles + tile_m
        at = tile.to(tl.int64) * SPLITS + split
        tl.store(part_ml + at * 2 * BLOCK_M + r_M, m_M, mask=keep_M)
        tl.store(part_ml + at * 2 * BLOCK_M + BLOCK_M + r_M, l_M, mask=keep_M)
        o_ptrs = part_o + at * BLOCK_M * BLOCK_DV + r_M[:, None] * BLOCK_DV + dv[None, :]
        tl.store(o_ptrs, acc_MV, mask=(keep_M & (l_M != 0.0))[:, None] & (dv < DV)[None, :])
        if LAST:
            tl.debug_barrier()
            if tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
                tl.store(arrived + tile, 0)
                combine(part_o, part_ml, tile, 0, first_row, total_rows, b, h * G, queries, kv_heads, out, lse,
                         so_b, so_h, so_s, so_d, G, DV, BLOCK_DV, HAS_LSE, BLOCK_M, SPLITS, SPLITS_POW2, ROWS,
                         CHUNK)  # fmt: skip
