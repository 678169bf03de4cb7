"""The 4-bit and 8-bit codes of the decoupled cache: the definition, bit for bit, in plain PyTorch.

A row of D values is cut into groups of 32 (the last one is padded with zeros). A group has one fp16 scale and 32 codes:

    scale = max(fp16(max|x| / L), 2^-14)                  L = 7 (q4_0) or 127 (q8_0), division in fp32
    code  = clip(round_half_even(x / scale), -Z, L) + Z   Z = 8 (q4_0; the lower clip is -8) or 128 (q8_0; it is -127)
    x'    = (code - Z) * scale

x is divided by the rounded scale, so |x - x'| <= scale / 2 for every x: |x| / scale is at most L (1 + 2^-11), which
rounds to L. A group that holds a NaN or an infinity, or whose scale passes 65504, gets the scale NaN (0x7E00) and the
codes of zero: all its values come back as NaN, never as a number that looks right. `check=True` refuses it instead.

ORDER of the bytes. q4_0 [..., G*16]: byte j (0..15) of a group holds element j in its low nibble and element j + 16 in
its high one, as GGML's q4_0 has it. q8_0 [..., G*32]: byte j holds element j; codes are unsigned (1..255), because
the bits of a small unsigned integer are an exact fp16 subnormal. Scales [..., G] are fp16, in a tensor of their own.

The CPU and CUDA give the same bits: every division has a tensor on both sides (PyTorch's CUDA division by a Python
number multiplies by the reciprocal). Called by `cache`, tests and parity; the Triton append kernel must equal it.
It never looks at the device's data without `check=True`.

Shape letters: D values of a row, G = ceil(D / 32) groups, E = 32 elements of a group, Y bytes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.device import ceil_div

GROUP: Final = 32
MIN_SCALE: Final = 2.0**-14
"""The smallest normal fp16, 6.1035e-5: smaller scales would be subnormal and lose bits."""


@dataclass(frozen=True)
class Code:
    """One format. levels: the largest code before the zero point; low: the smallest; zero: what is added to it."""

    kind: str
    bits: int
    levels: int
    low: int
    zero: int

    @property
    def group_bytes(self) -> int:
        """Bytes of the codes of one group, without its scale."""
        return GROUP * self.bits // 8


Q4: Final = Code("q4_0", 4, 7, -8, 8)
Q8: Final = Code("q8_0", 8, 127, -127, 128)
CODES: Final = {code.kind: code for code in (Q4, Q8)}


def groups_of(dim: int) -> int:
    """Groups of a row of `dim` values: ceil(dim / 32). ValueError when dim < 1."""
    if dim < 1:
        raise ValueError(f"a row has {dim} values; it needs at least 1")
    return ceil_div(dim, GROUP)


def code_bytes(code: Code, dim: int) -> int:
    """Bytes of the codes of a row of `dim` values, padding included, scales not."""
    return groups_of(dim) * code.group_bytes


def quantize(code: Code, x_D: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """x [..., D], any floating dtype -> codes uint8 [..., Y] and scales fp16 [..., G], on x's device.

    check: look (one device sync) for groups that have no scale: NaN, infinity, or a magnitude above L * 65504. They
    raise a ValueError with the place; without it they come back as NaN. fp64 input is rounded to fp32 first.
    """
    if not x_D.is_floating_point() or x_D.dim() < 1:
        raise ValueError(f"{code.kind} takes floating values [..., D], not {x_D.dtype} {tuple(x_D.shape)}")
    groups = groups_of(x_D.shape[-1])
    x_GE = pad(x_D.float(), (0, groups * GROUP - x_D.shape[-1])).reshape(*x_D.shape[:-1], groups, GROUP)
    amax_G = x_GE.abs().amax(-1)
    scale_G = (amax_G / torch.full_like(amax_G, code.levels)).half()
    lost_G = ~scale_G.isfinite()
    if check and bool(lost_G.any()):
        raise ValueError(_refusal(code, x_D, lost_G, amax_G))
    scale_G = scale_G.clamp(min=MIN_SCALE).masked_fill(lost_G, torch.nan)
    ratio_GE = torch.round(x_GE / scale_G.float().unsqueeze(-1)).masked_fill(lost_G.unsqueeze(-1), 0.0)
    codes_GE = (ratio_GE.clamp(code.low, code.levels) + code.zero).to(torch.uint8)
    return _pack(code, codes_GE).flatten(-2), scale_G


def dequantize(code: Code, codes_Y: Tensor, scales_G: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes uint8 [..., Y], scales fp16 [..., G] -> values [..., dim] in `dtype`.

    The product (code - zero) * scale is exact in fp32 (and in fp64); for fp16 and bf16 it is rounded once from fp32.
    quantize(dequantize(...)) gives the same codes and scales in fp32 and fp64 for whatever quantize made.
    """
    groups = groups_of(dim)
    want = (*scales_G.shape[:-1], groups * code.group_bytes)
    if codes_Y.dtype != torch.uint8 or scales_G.dtype != torch.float16:
        raise ValueError(f"codes are uint8 and scales float16, not {codes_Y.dtype} and {scales_G.dtype}")
    if scales_G.shape[-1] != groups or codes_Y.shape != want:
        raise ValueError(
            f"{code.kind} of {dim} values needs scales [..., {groups}] and codes [..., {groups * code.group_bytes}] "
            f"with the same leading shape, not {tuple(scales_G.shape)} and {tuple(codes_Y.shape)}"
        )
    codes_GE = _unpack(code, codes_Y.reshape(*scales_G.shape, code.group_bytes))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x_GE = (codes_GE.to(wide) - code.zero) * scales_G.to(wide).unsqueeze(-1)
    return x_GE.flatten(-2)[..., :dim].to(dtype)


def quantize_q4(x_D: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """x [..., D] -> q4_0 codes uint8 [..., ceil(D/32)*16], scales fp16 [..., ceil(D/32)]; see `quantize`."""
    return quantize(Q4, x_D, check=check)


def dequantize_q4(codes_Y: Tensor, scales_G: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """q4_0 codes and scales -> values [..., dim] in `dtype`; see `dequantize`."""
    return dequantize(Q4, codes_Y, scales_G, dim, dtype)


def quantize_q8(x_D: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """x [..., D] -> q8_0 codes uint8 [..., ceil(D/32)*32], scales fp16 [..., ceil(D/32)]; see `quantize`."""
    return quantize(Q8, x_D, check=check)


def dequantize_q8(codes_Y: Tensor, scales_G: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """q8_0 codes and scales -> values [..., dim] in `dtype`; see `dequantize`."""
    return dequantize(Q8, codes_Y, scales_G, dim, dtype)


def _pack(code: Code, codes_GE: Tensor) -> Tensor:
    """codes [..., G, 32] -> bytes [..., G, group_bytes], in the ORDER of the module's docstring."""
    if code.bits == 8:
        return codes_GE
    return codes_GE[..., : GROUP // 2] | (codes_GE[..., GROUP // 2 :] << 4)


def _unpack(code: Code, bytes_GY: Tensor) -> Tensor:
    """The inverse of `_pack`."""
    if code.bits == 8:
        return bytes_GY
    return torch.cat((bytes_GY & 0xF, bytes_GY >> 4), dim=-1)


def _refusal(code: Code, x_D: Tensor, lost_G: Tensor, amax_G: Tensor) -> str:
    place = [int(i) for i in lost_G.nonzero()[0]]
    group, at = place[-1], place[:-1]
    return (
        f"{code.kind} cannot hold values {tuple(x_D.shape)}: at {at}, group {group} (elements {group * GROUP} to "
        f"{min(x_D.shape[-1], (group + 1) * GROUP) - 1}) the largest magnitude is {float(amax_G[tuple(place)])}; "
        f"all must be finite and at most {code.levels} * 65504 = {code.levels * 65504}"
    )
