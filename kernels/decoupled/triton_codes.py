"""From stored bytes to what the tensor core multiplies, and the query in the same order: no arithmetic on codes.

- A code n in the low bits of an fp16 is the subnormal n 2^-24, exact, and `mma` takes subnormals; a nibble four bits
  further up is n 2^-20. So one AND makes two operands (a "plane"); the powers of two go into the query (for K) or the
  result (for V). Planes of 16-bit words are made in PTX where a GPU runs them (ASM) and by the same ANDs in Triton's
  own language in the interpreter.
- sum_e q_e (n_e - z) = sum_e q_e n_e - z sum_e q_e: the second sum is taken once, of the rounded q.
- q in bf16 or fp32 is scaled by a power of two into [8, 16) at its largest, so that it does not overflow fp16.

Called by `triton_parts`, `triton_decode` and `triton_reduce`. Never touches lengths or the softmax.

Shape letters: M rows of a tile (query heads of one KV head, padded to 16 or more), S rows of them that the softmax
keeps (8 where at most 8 are used), N tokens, D values.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton's language has no * in a tuple)
from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**24)  # a code in an fp16's low bits is n / UNIT


@triton.jit
def nibbles_of_words(w, ASM: tl.constexpr):
    """int16 words (bytes 2j, 2j+1) -> fp16 planes: elements 2j, 2j+16 (x 16), 2j+1, 2j+17 (x 16), in units of 2^-24."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t;\n"
            "and.b32 $0, $4, 0x000F000F;\n"
            "and.b32 $1, $4, 0x00F000F0;\n"
            "shr.u32 t, $4, 8;\n"
            "and.b32 $2, t, 0x000F000F;\n"
            "and.b32 $3, t, 0x00F000F0; }",
            "=r,=r,=r,=r,r",
            [w],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        t = w >> 8
        return (
            (w & 0x0F).to(tl.float16, bitcast=True),
            (w & 0xF0).to(tl.float16, bitcast=True),
            (t & 0x0F).to(tl.float16, bitcast=True),
            (t & 0xF0).to(tl.float16, bitcast=True),
        )


@triton.jit
def bytes_of_words(w, ASM: tl.constexpr):
    """int16 words (bytes 2j, 2j+1) -> fp16 planes: elements 2j and 2j+1, in units of 2^-24."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t;\nand.b32 $0, $2, 0x00FF00FF;\nshr.u32 t, $2, 8;\nand.b32 $1, t, 0x00FF00FF; }",
            "=r,=r,r",
            [w],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        return (w & 0xFF).to(tl.float16, bitcast=True), ((w >> 8) & 0xFF).to(tl.float16, bitcast=True)


@triton.jit
def nibbles_of_bytes(y, ASM: tl.constexpr):
    """uint8 bytes j -> fp16 planes: elements j and j+16 (x 16), in units of 2^-24; K = 16 of a dot is one plane."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t, u;\n"
            "and.b32 t, $4, 0x0F0F0F0F;\n"
            "and.b32 u, $4, 0xF0F0F0F0;\n"
            "prmt.b32 $0, t, 0, 0x4140;\n"
            "prmt.b32 $1, t, 0, 0x4342;\n"
            "prmt.b32 $2, u, 0, 0x4140;\n"
            "prmt.b32 $3, u, 0, 0x4342; }",
            "=r,=r,=r,=r,r",
            [y],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    else:
        return (y & 0x0F).to(tl.uint16).to(tl.float16, bitcast=True), (y & 0xF0).to(tl.uint16).to(
            tl.float16, bitcast=True
        )


@triton.jit
def load(at, seen):
    """A load; 0 where not seen (None: all of it exists, and the load may become an asynchronous copy)."""
    if seen is None:
        return tl.load(at)
    elif len(at.shape) == 2:
        return tl.load(at, mask=seen[:, None], other=0)
    else:
        return tl.load(at, mask=seen, other=0)


@triton.jit
def load_rows(base, n, seen, D: tl.constexpr, DP: tl.constexpr):
    """[len(n), DP] of fp16 rows of D values; 0 beside them and where not seen."""
    d = tl.arange(0, DP)
    at = base + (n * D)[:, None] + d[None, :]
    if D == DP:
        return load(at, seen)
    elif seen is None:
        return tl.load(at, mask=(d < D)[None, :], other=0)
    else:
        return tl.load(at, mask=seen[:, None] & (d < D)[None, :], other=0)


@triton.jit
def narrow(x, M: tl.constexpr, S: tl.constexpr, N: tl.constexpr):
    """[M, N] -> its first S rows: M, or 8 of 16 (rows i and i + 8 lie in one thread's registers: no data moves)."""
    if S == M:
        return x
    else:
        x, _ = tl.split(tl.permute(tl.reshape(x, (2, S, N)), (1, 2, 0)))
        return x


@triton.jit
def narrow_row(x, M: tl.constexpr, S: tl.constexpr):
    """[M] -> [S], as `narrow`."""
    if S == M:
        return x
    else:
        x, _ = tl.split(tl.permute(tl.reshape(x, (2, S)), (1, 0)))
        return x


@triton.jit
def widen(x, M: tl.constexpr, S: tl.constexpr):
    """[S] or [S, N] -> [M] or [M, N], the rows repeated: for a dot of 16 rows, of which 8 to 15 are not used."""
    if S == M:
        return x
    elif len(x.shape) == 1:
        return tl.reshape(tl.broadcast_to(x[None, :], (2, S)), (M,))
    else:
        return tl.reshape(tl.broadcast_to(x[None, :, :], (2, S, x.shape[1])), (M, x.shape[1]))


@triton.jit
def power_of_two_scale(top):
    """nf [M], 1 / nf: the power of two that brings `top` (>= 0, fp32) into [8, 16); exact, from the bits."""
    e = tl.maximum((top.to(tl.int32, bitcast=True) >> 23) & 0xFF, 16)
    return ((257 - e) << 23).to(tl.float32, bitcast=True), ((e - 3) << 23).to(tl.float32, bitcast=True)


@triton.jit
def largest(q, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr):
    DP: tl.constexpr = triton.next_power_of_2(D)
    row = tl.arange(0, M)
    d = tl.arange(0, DP)
    x = tl.load(q[0] + row[:, None] * q[1] + d[None, :] * q[2], mask=(row < G)[:, None] & (d < D)[None, :], other=0.0)
    return tl.max(tl.abs(x.to(tl.float32)), 1)


@triton.jit
def load_q(q, col, nf, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, NORM: tl.constexpr):
    """[M, len(col)] fp16: the query's values `col`, with NORM times nf [M] (powers of two); 0 outside."""
    row = tl.arange(0, M)
    x = tl.load(
        q[0] + row[:, None] * q[1] + col[None, :] * q[2], mask=(row < G)[:, None] & (col < D)[None, :], other=0.0
    )
    if NORM:
        x = x.to(tl.float32) * nf[:, None]
    return x.to(tl.float16)


@triton.jit
def query_planes(
    q, nf, KIND: tl.constexpr, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, S: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """The query as the planes of its key part have it, and the zero point times sum(q) [S] of every group."""
    planes = ()
    zeros = ()
    if KIND != 16:
        for g in tl.static_range((D + 31) // 32):
            if KIND == 4:
                lo = load_q(q, 32 * g + tl.arange(0, 16), nf, G, D, M, NORM)
                hi = load_q(q, 32 * g + 16 + tl.arange(0, 16), nf, G, D, M, NORM)
            else:
                x = load_q(q, 32 * g + tl.arange(0, 32), nf, G, D, M, NORM)
                lo, hi = tl.split(tl.reshape(x, (M, 16, 2)))
            total = narrow_row(tl.sum(lo.to(tl.float32) + hi.to(tl.float32), 1), M, S)
            zeros = zeros + (total * ((-8.0 if KIND == 4 else -128.0) / UNIT),)
            planes = planes + (lo, hi)
    return planes, zeros


@triton.jit
def prefetch(at, SIZE: tl.constexpr, wanted):
    """Ask the L2 for SIZE bytes (a multiple of 16) at `at` if `wanted`; the answer is awaited by nobody."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p, q;\n"
        ".reg .b32 t;\n"
        "mov.u32 t, %tid.x;\n"
        "setp.ne.b32 q, $2, 0;\n"
        "setp.eq.and.u32 p, t, 0, q;\n"
        "@p cp.async.bulk.prefetch.L2.global [$1], $3;\n"
        "mov.u32 $0, 0; }",
        "=r,l,r,r",
        [at.to(tl.int64), wanted.to(tl.int32), SIZE],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_part(
    codes, scales, bh, first, wanted, SLOTS, KIND: tl.constexpr, D: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """The block of N tokens that starts at token `first`, of every group of a part."""
    if KIND == 16:
        prefetch(codes + (bh * SLOTS + first) * D, N * D * 2, wanted)
    else:
        G: tl.constexpr = (D + 31) // 32
        for g in tl.static_range(G):
            token = (bh * G + g) * SLOTS + first
            prefetch(codes.to(tl.int64) + token * (4 * KIND), N * (4 * KIND), wanted)
            prefetch(scales + token, N * 2, wanted)
