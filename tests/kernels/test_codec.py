"""The bytes of the cache: golden ones worked out by hand, an own implementation in numpy, and properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kernels.decoupled.codec import (
    MIN_SCALE,
    Q4,
    Q8,
    Code,
    code_bytes,
    dequantize,
    dequantize_q4,
    dequantize_q8,
    quantize,
    quantize_q4,
    quantize_q8,
)

CALM = settings(deadline=None)
"""A loaded machine is no failure."""
BOTH = pytest.mark.parametrize("code", [Q4, Q8], ids=["q4_0", "q8_0"])


def rows(dtype: Any, limit: float) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=70)
    shapes = shapes.filter(lambda shape: int(np.prod(shape)) <= 3000)
    near = float(np.nextafter(dtype(limit), dtype(0)))
    values = st.floats(-near, near, width=16 if dtype == np.float16 else 32, allow_nan=False, allow_subnormal=True)
    return hnp.arrays(dtype, shapes, elements=values)


HALVES = rows(np.float16, 65504)
FLOATS = rows(np.float32, 7 * 65504)


def in_numpy(code: Code, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The docstring of the codec once more, a group at a time, in numpy."""
    dim = x.shape[-1]
    groups = -(-dim // 32)
    flat = x.reshape(-1, dim).astype(np.float32)
    all_codes, all_scales = [], []
    for row in flat:
        padded = np.concatenate([row, np.zeros(groups * 32 - dim, np.float32)])
        line: list[int] = []
        for group in padded.reshape(groups, 32):
            scale = np.float16(max(np.float16(np.abs(group).max() / np.float32(code.levels)), np.float16(2.0**-14)))
            units = np.clip(np.rint(group / np.float32(scale)), code.low, code.levels).astype(int) + code.zero
            line += (
                [int(u) for u in units] if code.bits == 8 else [int(units[j] | units[j + 16] << 4) for j in range(16)]
            )
            all_scales.append(scale)
        all_codes.append(line)
    lead = x.shape[:-1]
    codes = np.array(all_codes, np.uint8).reshape(*lead, groups * code.group_bytes)
    return codes, np.array(all_scales, np.float16).reshape(*lead, groups)


def test_golden_bytes_of_q4() -> None:
    """max |x| = 7, so the scale is 1: element 0 is -7 (code 1), 1..7 are 1..7, the upper half is 0 but for 16 and 31.

    2.5 and 3.5 go to the even neighbours 2 and 4; -0.5 to -0.
    """
    x = torch.zeros(32)
    x[:8] = torch.tensor([-7.0, 1.0, 2.5, 3.5, -0.5, 5.0, 6.0, 7.0])
    x[16], x[31] = -1.0, 3.0
    codes, scales = quantize_q4(x)
    low = [1, 9, 10, 12, 8, 13, 14, 15, 8, 8, 8, 8, 8, 8, 8, 8]
    high = [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 11]
    assert codes.tolist() == [h << 4 | n for n, h in zip(low, high, strict=True)]
    assert codes[0] == 0x71 and codes[1] == 0x89 and codes[15] == 0xB8
    assert scales.view(torch.int16).tolist() == [0x3C00]


def test_golden_bytes_of_q8_with_padding() -> None:
    """34 values: two groups; max |x| = 254 makes the scale 2 (0x4000), 0.254 makes fp16(0.002) = 0x1819."""
    x = torch.zeros(34)
    x[0], x[1], x[2], x[31] = -254.0, 3.0, 5.0, 100.0
    x[32], x[33] = 0.254, -0.002
    codes, scales = quantize_q8(x)
    assert codes.shape == (64,) and scales.view(torch.int16).tolist() == [0x4000, 0x1819]
    assert codes[:3].tolist() == [1, 130, 130] and codes[31] == 178  # 1.5 and 2.5 both go to 2
    assert codes[32:34].tolist() == [255, 127] and codes[34:].eq(128).all()


def test_golden_bytes_of_zero() -> None:
    """A zero group has the smallest scale, 2^-14 (0x0400), and the code of zero everywhere."""
    for code, byte in ((Q4, 0x88), (Q8, 128)):
        codes, scales = quantize(code, torch.zeros(2, 33))
        assert codes.eq(byte).all() and scales.view(torch.int16).eq(0x0400).all()
        assert dequantize(code, codes, scales, 33).eq(0).all()


@BOTH
@CALM
@given(x=st.one_of(HALVES, FLOATS))
def test_equals_numpy(code: Code, x: np.ndarray[Any, Any]) -> None:
    codes, scales = quantize(code, torch.from_numpy(x))
    want_codes, want_scales = in_numpy(code, x)
    assert np.array_equal(codes.numpy(), want_codes)
    assert np.array_equal(scales.numpy().view(np.int16), want_scales.view(np.int16))


@BOTH
@CALM
@given(x=st.one_of(HALVES, FLOATS))
@example(x=np.full(33, -65504, np.float16))
@example(x=np.full(32, 2.0**-24, np.float16))
def test_error_is_at_most_half_a_scale(code: Code, x: np.ndarray[Any, Any]) -> None:
    dim = x.shape[-1]
    codes, scales = quantize(code, torch.from_numpy(x))
    got = dequantize(code, codes, scales, dim, torch.float64)
    scale = scales.double().repeat_interleave(32, -1)[..., :dim]
    assert bool(scales.ge(MIN_SCALE).all())
    # x / scale is rounded to fp32 before it is rounded to a whole number: 2^-24 of it at most
    assert bool(((torch.from_numpy(x).double() - got).abs() <= scale * (0.5 + (code.levels + 1) * 2.0**-24)).all())


@BOTH
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@CALM
@given(x=st.one_of(HALVES, FLOATS))
def test_codes_of_the_values_of_codes(code: Code, wide: torch.dtype, x: np.ndarray[Any, Any]) -> None:
    codes, scales = quantize(code, torch.from_numpy(x))
    again, scales_again = quantize(code, dequantize(code, codes, scales, x.shape[-1], wide))
    assert torch.equal(codes, again) and torch.equal(scales, scales_again)


@BOTH
@CALM
@given(data=st.data())
def test_every_code_comes_back(code: Code, data: st.DataObject) -> None:
    """Any codes that contain the largest magnitude, under any normal scale: bytes -> values -> the same bytes."""
    units = data.draw(st.lists(st.integers(-code.levels, code.levels), min_size=31, max_size=31))
    units.insert(data.draw(st.integers(0, 31)), data.draw(st.sampled_from([-code.levels, code.levels])))
    scale = data.draw(st.integers(0x0400, 0x7BFF))
    scales = torch.tensor([scale], dtype=torch.int16).view(torch.float16)
    stored = torch.tensor(units) + code.zero
    codes = (stored if code.bits == 8 else stored[:16] | stored[16:] << 4).to(torch.uint8)
    values = dequantize(code, codes, scales, 32)
    assert torch.equal(values, torch.tensor(units).float() * scales.float())
    again, scales_again = quantize(code, values)
    assert torch.equal(codes, again) and torch.equal(scales, scales_again)


@BOTH
def test_both_ends_of_the_range(code: Code) -> None:
    """+max and -max map to zero + L and zero - L, never to the clip at -8, though the scale may be rounded down."""
    for top in (1.0, 1.0005, 3.14159, 7.001, 65504.0, 2.0**-10, 1e-4):
        x = torch.tensor([top, -top])
        codes, scales = quantize(code, x)
        units = [int(codes[0]), int(codes[1])] if code.bits == 8 else [int(codes[0]) & 15, int(codes[1]) & 15]
        assert code.bits == 8 or (codes[:2] >> 4).eq(8).all()
        if top / code.levels >= MIN_SCALE:
            assert units == [code.zero + code.levels, code.zero - code.levels]
        else:
            assert units == [code.zero + round(top / MIN_SCALE), code.zero - round(top / MIN_SCALE)]
        assert (dequantize(code, codes, scales, 2) - x).abs().max() <= float(scales[0]) / 2


def test_the_lowest_q4_code_is_minus_8() -> None:
    """Quantize never makes it, but bytes of others may hold it."""
    assert dequantize_q4(torch.zeros(16, dtype=torch.uint8), torch.tensor([2.0]).half(), 3).tolist() == [-16.0] * 3


def test_subnormals_go_to_zero_or_a_few_units_of_the_smallest_scale() -> None:
    x = torch.tensor([2.0**-24, 2.0**-15, 3 * 2.0**-15, -(2.0**-14)]).half()
    codes, scales = quantize_q8(x)
    assert scales.tolist() == [MIN_SCALE] and codes[:4].tolist() == [128, 128, 130, 127]


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_has_no_scale_is_refused(code: Code, bad: float) -> None:
    x = torch.ones(2, 3, 70)
    x[1, 2, 40] = bad
    with pytest.raises(ValueError, match=r"\(2, 3, 70\): at \[1, 2\], group 1 \(elements 32 to 63\)"):
        quantize(code, x)
    codes, scales = quantize(code, x, check=False)
    assert scales.isnan().sum() == 1 and scales.view(torch.int16)[1, 2, 1] == 0x7E00
    got = dequantize(code, codes, scales, 70)
    assert got[1, 2, 32:64].isnan().all() and got.isnan().sum() == 32
    assert torch.equal(got[0], dequantize(code, *quantize(code, x[0]), 70))


@BOTH
def test_a_scale_past_65504_is_refused(code: Code) -> None:
    limit = code.levels * 65504.0
    _, scales = quantize(code, torch.tensor([limit]))
    assert scales.tolist() == [65504.0]
    with pytest.raises(ValueError, match=rf"all must be finite and at most {code.levels} \* 65504"):
        quantize(code, torch.tensor([limit * 1.001]))
    assert quantize(code, torch.tensor([limit * 1.001]), check=False)[1].isnan().all()


@pytest.mark.parametrize("dim", [1, 12, 20, 31, 32, 33, 40, 64, 80, 96, 128, 256])
def test_any_head_size(dim: int) -> None:
    x = torch.randn(2, 3, dim, generator=torch.Generator().manual_seed(dim)).half()
    for code, q, dq in ((Q4, quantize_q4, dequantize_q4), (Q8, quantize_q8, dequantize_q8)):
        codes, scales = q(x)
        assert codes.shape == (2, 3, code_bytes(code, dim)) and scales.shape == (2, 3, -(-dim // 32))
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            got = dq(codes, scales, dim, dtype)
            assert got.dtype == dtype and got.shape == x.shape
            assert torch.equal(got, dq(codes, scales, dim, torch.float64).to(dtype))


def test_strides_do_not_matter() -> None:
    x = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(0)).transpose(0, 2)
    for q in (quantize_q4, quantize_q8):
        assert all(torch.equal(a, b) for a, b in zip(q(x), q(x.contiguous()), strict=True))


def test_no_rows() -> None:
    codes, scales = quantize_q4(torch.empty(0, 40))
    assert codes.shape == (0, 32) and dequantize_q4(codes, scales, 40).shape == (0, 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_q4(torch.zeros(4, dtype=torch.int32)), r"floating values \[\.\.\., D\], not torch.int32"),
        (lambda: quantize_q4(torch.zeros(4, 0)), "a row has 0 values"),
        (lambda: dequantize_q4(torch.zeros(16), torch.zeros(1).half(), 32), "codes are uint8"),
        (lambda: dequantize_q4(*quantize_q4(torch.zeros(32)), 33), r"q4_0 of 33 values needs scales \[\.\.\., 2\]"),
        (lambda: dequantize_q8(*quantize_q4(torch.zeros(32)), 32), r"q8_0 of 32 values needs .* codes \[\.\.\., 32\]"),
        (lambda: dequantize_q4(torch.zeros(2, 16).byte(), torch.zeros(3, 1).half(), 32), "same leading shape"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@BOTH
def test_the_gpu_makes_the_same_bits(code: Code) -> None:
    x = torch.randn(4096, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-5, 4, 4096)[:, None]
    for value in (x, x.half()):
        codes, scales = quantize(code, value)
        far_codes, far_scales = quantize(code, value.cuda())
        assert torch.equal(codes, far_codes.cpu()) and torch.equal(scales, far_scales.cpu())
