"""The streaming reference equals the dense definition to the last digits of fp64, whatever the partitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.decoupled.reference import NullToken, State, Tail, decoupled_decode_reference, merge, streaming_reference

TIGHT = 1e-14
"""The two differ by a few roundings of fp64; the issue measured 6e-16."""


def problem(
    lengths: list[int], *, heads: int = 4, kv_heads: int = 2, dims: tuple[int, int, int] = (12, 20, 24), seed: int = 0
) -> dict[str, Any]:
    """Random q, k, v with NaN at and above each row's length."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    batch, keys = len(lengths), max(lengths, default=0)
    ds, dg, dv = dims
    data = {"q_sem": normal(batch, heads, ds), "q_geo": normal(batch, heads, dg)}
    unused = torch.arange(keys) >= torch.tensor(lengths)[:, None]
    for name, dim in (("k_sem", ds), ("k_geo", dg), ("v", dv)):
        data[name] = normal(batch, kv_heads, keys, dim).masked_fill(unused[:, None, :, None], torch.nan)
    return data | {"lengths": torch.tensor(lengths, dtype=torch.int32)}


def only(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The output of a call without return_lse."""
    assert isinstance(result, Tensor)
    return result


def null_token(kv_heads: int = 2, dims: tuple[int, int, int] = (12, 20, 24), seed: int = 9) -> NullToken:
    gen = torch.Generator().manual_seed(seed)
    k_sem, k_geo, v = (torch.randn(kv_heads, dim, generator=gen, dtype=torch.float64) for dim in dims)
    return NullToken(k_sem, k_geo, v)


def cut(data: dict[str, Any], tail: int) -> tuple[dict[str, Any], Tail]:
    """The newest `tail` tokens of every row, apart from the rest; each in a ring of `tail` slots."""
    lengths = data["lengths"].long()
    prefix = (lengths - tail).clamp(min=0)
    slots = torch.arange(tail)
    position_BR = prefix[:, None] + (slots - prefix[:, None]) % max(tail, 1)
    index = position_BR.clamp(max=max(data["k_sem"].shape[2] - 1, 0))[:, None, :, None]
    parts = []
    for name in ("k_sem", "k_geo", "v"):
        x = data[name]
        parts.append(x.gather(2, index.expand(x.shape[0], x.shape[1], tail, x.shape[3])))
    k_sem, k_geo, v = parts
    return data | {"lengths": prefix.to(torch.int32)}, Tail(k_sem, k_geo, v, position_BR < lengths[:, None])


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def one_by_one(data: dict[str, Any], null: NullToken | None, row: int, head: int) -> tuple[list[float], float]:
    """The definition once more, in Python's floats, for one row and head: (out, lse)."""
    kv = head // (data["q_sem"].shape[1] // data["k_sem"].shape[1])
    keys = [tuple(data[n][row, kv, u].tolist() for n in ("k_sem", "k_geo", "v")) for u in range(data["lengths"][row])]
    if null is not None:
        keys.append((null.k_sem[kv].tolist(), null.k_geo[kv].tolist(), null.v[kv].tolist()))
    q_sem, q_geo = data["q_sem"][row, head].tolist(), data["q_geo"][row, head].tolist()
    weights = [math.exp(dot(q_sem, k_sem) + dot(q_geo, k_geo)) for k_sem, k_geo, _ in keys]
    total = sum(weights)
    out = [sum(w * v[i] for w, (_, _, v) in zip(weights, keys, strict=True)) / total for i in range(len(keys[0][2]))]
    return out, math.log(total)


@pytest.mark.parametrize("with_null", [False, True])
def test_the_definition_in_plain_floats(with_null: bool) -> None:
    data = problem([5, 1])
    null = null_token() if with_null else None
    out, lse = decoupled_decode_reference(**data, null=null, return_lse=True)
    for row in range(2):
        for head in range(4):
            want, want_lse = one_by_one(data, null, row, head)
            assert out[row, head].tolist() == pytest.approx(want, rel=1e-12, abs=1e-13)
            assert float(lse[row, head]) == pytest.approx(want_lse, rel=1e-12)


@pytest.mark.parametrize("partitions", range(1, 65))
def test_any_number_of_partitions_gives_the_direct_softmax(partitions: int) -> None:
    data = problem([0, 1, 17, 63], seed=partitions)
    for null in (None, null_token()):
        want, want_lse = decoupled_decode_reference(**data, null=null, return_lse=True)
        for tail in (0, 5):
            prefix, ring = cut(data, tail)
            out, lse = streaming_reference(
                **prefix, partitions=partitions, null=null, tail=ring if tail else None, block=32, return_lse=True
            )
            torch.testing.assert_close(out, want, rtol=0, atol=TIGHT)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize("tail", [0, 1, 5, 80])
def test_one_pass_is_the_same(block: int, with_null: bool, tail: int) -> None:
    data = problem([0, 1, 17, 63])
    null = null_token() if with_null else None
    want = decoupled_decode_reference(**data, null=null)
    prefix, ring = cut(data, tail)
    out = streaming_reference(**prefix, partitions=1, passes=1, block=block, null=null, tail=ring if tail else None)
    torch.testing.assert_close(out, want, rtol=0, atol=TIGHT)


@pytest.mark.parametrize(("partitions", "passes"), [(0, 2), (1, 2), (3, 2), (1, 1)])
def test_an_empty_prefix(partitions: int, passes: int) -> None:
    """L_prefix 0: the null token alone gives v_null; the tail alone its softmax; nothing at all gives 0 and -inf."""
    data = problem([3, 4, 0])
    prefix, ring = cut(data, 4)
    assert prefix["lengths"].tolist() == [0, 0, 0]
    null = null_token()
    for tail in (None, ring):
        for token in (None, null):
            seen = data if tail is not None else data | {"lengths": torch.zeros(3, dtype=torch.int32)}
            want, want_lse = decoupled_decode_reference(**seen, null=token, return_lse=True)
            out, lse = streaming_reference(
                **prefix, partitions=partitions, passes=passes, null=token, tail=tail, return_lse=True
            )
            torch.testing.assert_close(out, want, rtol=0, atol=TIGHT)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=TIGHT)
            if token is None:
                assert out[2].eq(0).all() and lse[2].isneginf().all()
            elif tail is None:
                torch.testing.assert_close(out, null.v.repeat_interleave(2, 0).expand_as(out), rtol=0, atol=TIGHT)


def test_no_partition_refuses_a_prefix() -> None:
    with pytest.raises(ValueError, match=r"partitions=0 takes an empty prefix, but the longest row has 5"):
        streaming_reference(**problem([2, 5]), partitions=0)


def test_no_keys_at_all() -> None:
    data = problem([0, 0])
    out, lse = decoupled_decode_reference(**data, return_lse=True)
    assert out.shape == (2, 4, 24) and out.eq(0).all() and lse.isneginf().all()
    out = only(decoupled_decode_reference(**data, null=null_token()))
    torch.testing.assert_close(out, null_token().v.repeat_interleave(2, 0).expand_as(out), rtol=0, atol=TIGHT)


def test_logits_of_ten_thousand() -> None:
    data = problem([40])
    data["q_sem"] = data["q_sem"] * 3e3
    want = only(decoupled_decode_reference(**data))
    assert want.isfinite().all()
    for partitions in (1, 3, 40):
        out = streaming_reference(**data, partitions=partitions, block=3)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-10)  # scores of 1e4 carry an error of 1e-12 each


def test_merge_gives_an_empty_state_no_weight() -> None:
    empty = State(torch.full((1, 1), -torch.inf), torch.zeros(1, 1), torch.zeros(1, 1, 2))
    full = State(torch.full((1, 1), -3.0), torch.ones(1, 1), torch.tensor([[[1.0, 2.0]]]))
    both = merge([empty, full])
    assert both.m_BH.item() == -3.0 and both.d_BH.item() == 1.0 and both.o_BHV.tolist() == [[[1.0, 2.0]]]
    none = merge([empty, empty])
    assert none.m_BH.isneginf().all() and none.d_BH.item() == 0.0 and not none.o_BHV.isnan().any()


@pytest.mark.parametrize("form", ["contiguous", "strided", "batched", "expanded"])
def test_nulls_of_any_strides(form: str) -> None:
    data, null = problem([3, 9]), null_token()
    want = only(decoupled_decode_reference(**data, null=null))

    def shaped(x: Tensor) -> Tensor:
        if form == "strided":
            wide = torch.full((x.shape[1], 3 * x.shape[0]), torch.nan, dtype=x.dtype)
            wide[:, ::3] = x.T
            return wide[:, ::3].T
        if form == "batched":
            return x.repeat(2, 1, 1)
        return x.expand(2, -1, -1) if form == "expanded" else x

    token = NullToken(shaped(null.k_sem), shaped(null.k_geo), shaped(null.v))
    assert torch.equal(only(decoupled_decode_reference(**data, null=token)), want)
    torch.testing.assert_close(streaming_reference(**data, partitions=2, null=token), want, rtol=0, atol=TIGHT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_sem": torch.zeros(2, 3, 12)}, r"q_sem \(2, 3, 12\).*do not belong together"),
        ({"k_geo": torch.zeros(2, 2, 8, 20)}, r"k_geo \(2, 2, 8, 20\)"),
        ({"lengths": torch.tensor([3, 10])}, r"lengths \[3, 10\] must lie in 0\.\.9"),
        ({"lengths": torch.tensor([3.0, 9.0])}, r"must be int \[2\]"),
        ({"null": NullToken(torch.zeros(2, 12), torch.zeros(2, 20), torch.zeros(2, 8))}, r"null v is \(2, 8\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoupled_decode_reference(**(problem([3, 9]) | change))


def test_a_null_token_of_mixed_ranks() -> None:
    with pytest.raises(ValueError, match=r"all of \[B, Hkv, d\], not \(2, 4\), \(3, 2, 4\), \(2, 4\)"):
        NullToken(torch.zeros(2, 4), torch.zeros(3, 2, 4), torch.zeros(2, 4))
