"""Merging the partial softmax results of splits, in split order, and writing rows of the output.

With partials (m_p, l_p, o_p): m = max m_p, l = sum l_p 2^((m_p - m) scale), o = sum o_p 2^((m_p - m) scale) / l; m_p is
the largest score before the scale (positive, in base 2), l_p and o_p are times 2^SHIFT. A split without a key has
l_p = 0 and its o_p counts for nothing. Never waits for the host. Called by `triton_split.py` and `launch.py`.

Letters: M or R rows of a tile, S splits, C splits of one step, V size of a value. Exponents are base 2. FLOOR, the
least finite fp32, stands for "no key yet": exp2(-inf - FLOOR) is 0, never NaN.
"""
# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

FLOOR = tl.constexpr(-3.4028234663852886e38)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def emit(
    m_M, l_M, o_MV, scale, rows_M, keep_M, b, head0, queries, kv_heads, out, lse, so_b, so_h, so_s, so_d,
    G: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, HAS_LSE: tl.constexpr, WIDE: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """Normalise and write rows of the output and their natural-log LSE; a row that saw no key is 0 and -inf."""
    some_M = tl.where(l_M == 0.0, 1.0, l_M)
    o_MV = o_MV / some_M[:, None]
    if WIDE:  # the interpreter cuts fp32 to bf16: round half to even first
        bits_MV = o_MV.to(tl.int32, bitcast=True)
        o_MV = ((bits_MV + 0x7FFF + ((bits_MV >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    head_M = (head0 + rows_M % G).to(tl.int64)
    query_M = (rows_M // G).to(tl.int64)
    d = tl.arange(0, BLOCK_DV)
    o_ptrs = out + b.to(tl.int64) * so_b + (head_M * so_h + query_M * so_s)[:, None] + d[None, :] * so_d
    tl.store(o_ptrs, o_MV.to(out.dtype.element_ty), mask=keep_M[:, None] & (d < DV)[None, :])
    if HAS_LSE:
        value_M = (m_M * scale + (tl.log2(some_M) - SHIFT)) * LN2
        value_M = tl.where(l_M == 0.0, float("-inf"), value_M)
        at_M = (b.to(tl.int64) * kv_heads * G + head_M) * queries + query_M
        tl.store(lse + at_M, value_M, mask=keep_M)


@triton.jit(do_not_specialize=["kv_heads", "queries", "m_tiles"])
def combine_kernel(
    part_o, part_ml, out, lse, scale, so_b, so_h, so_s, so_d, kv_heads, queries, m_tiles,
    G: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, HAS_LSE: tl.constexpr, BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_POW2: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
    WIDE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Merge the partials of ROWS rows of a tile; grid (batch * kv_heads, m tiles, ceil(rows of a tile / ROWS)).

    Loads depend on nothing but the place, so that they are all in flight at once; what no split wrote is discarded
    after it was read.
    """
    bh, tile_m = tl.program_id(0), tl.program_id(1)
    r_R = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    keep_R = tile_m * BLOCK_M + r_R < queries * G
    s_S = tl.arange(0, SPLITS_POW2)
    tile = (bh * m_tiles + tile_m).to(tl.int64)
    ml = part_ml + tile * SPLITS * 2 * BLOCK_M
    if PDL:
        gdc_wait()
    at_SR = s_S[:, None] * (2 * BLOCK_M) + r_R[None, :]
    keep_SR = (s_S < SPLITS)[:, None] & keep_R[None, :]
    m_SR = tl.load(ml + at_SR, mask=keep_SR, other=FLOOR)
    l_SR = tl.load(ml + at_SR + BLOCK_M, mask=keep_SR, other=0.0)
    m_R = tl.max(m_SR, 0)
    l_R = tl.sum(l_SR * tl.exp2((m_SR - m_R[None, :]) * scale), 0)
    o_RV = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    d = tl.arange(0, BLOCK_DV)
    o_base = part_o + tile * SPLITS * BLOCK_M * BLOCK_DV
    for s0 in tl.static_range(0, SPLITS, CHUNK):
        s_C = s0 + tl.arange(0, CHUNK)
        keep_CR = (s_C < SPLITS)[:, None] & keep_R[None, :]
        at_CR = s_C[:, None] * (2 * BLOCK_M) + r_R[None, :]
        m_CR = tl.load(ml + at_CR, mask=keep_CR, other=FLOOR)
        l_CR = tl.load(ml + at_CR + BLOCK_M, mask=keep_CR, other=0.0)
        o_at = (s_C[:, None] * BLOCK_M + r_R[None, :])[:, :, None] * BLOCK_DV + d[None, None, :]
        o_CRV = tl.load(o_base + o_at, mask=keep_CR[:, :, None] & (d < DV)[None, None, :], other=0.0)
        o_CRV = tl.where((l_CR != 0.0)[:, :, None], o_CRV, 0.0)
        o_RV += tl.sum(o_CRV * tl.exp2((m_CR - m_R[None, :]) * scale)[:, :, None], 0)
    emit(m_R, l_R, o_RV, scale, tile_m * BLOCK_M + r_R, keep_R, bh // kv_heads, (bh % kv_heads) * G, queries, kv_heads,
         out, lse, so_b, so_h, so_s, so_d, G, DV, BLOCK_DV, HAS_LSE, WIDE, SHIFT)  # fmt: skip
