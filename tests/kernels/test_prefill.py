"""Many queries at once through SDPA equal the definition written out, forward and backward, null token included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.decoupled.prefill import decoupled_prefill, gated_queries
from kernels.decoupled.reference import NullToken, decoupled_decode_reference

NAMES = ("q_sem", "q_geo", "k_sem", "k_geo", "v", "gate", "tau", "n_sem", "n_geo", "n_v")


def inputs(
    queries: int, keys: int, dtype: torch.dtype = torch.float64, dims: tuple[int, int, int] = (12, 20, 24)
) -> list[Tensor]:
    gen = torch.Generator().manual_seed(queries * 1000 + keys)
    ds, dg, dv = dims
    shapes: list[tuple[int, ...]] = [
        (2, 4, queries, ds),
        (2, 4, queries, dg),
        (2, 2, keys, ds),
        (2, 2, keys, dg),
        (2, 2, keys, dv),
    ]
    shapes += [(2, 4, queries), (4,), (2, ds), (2, dg), (2, dv)]
    made = [torch.randn(*s, generator=gen, dtype=torch.float64) for s in shapes]
    made[5], made[6] = torch.sigmoid(made[5]), made[6].abs() + 0.5
    return [x.to(dtype).requires_grad_() for x in made]


def definition(data: list[Tensor], with_null: bool, causal: bool) -> Tensor:
    """Equation 6.2, key by key: no q', no mask trick, no SDPA."""
    q_sem, q_geo, k_sem, k_geo, v, gate, tau, n_sem, n_geo, n_v = (x.double() for x in data)
    queries, keys = q_sem.shape[2], k_sem.shape[2]
    out = []
    for t in range(queries):
        seen = keys - queries + t + 1 if causal else keys
        rows = []
        for h in range(4):
            kv = h // 2
            ks, kg, vv = k_sem[:, kv, :seen], k_geo[:, kv, :seen], v[:, kv, :seen]
            if with_null:
                ks, kg, vv = (
                    torch.cat((n[kv].expand(2, 1, -1), x), 1) for n, x in ((n_sem, ks), (n_geo, kg), (n_v, vv))
                )
            g = gate[:, h, t, None]
            s = 2 * g * (q_sem[:, h, t, None] * ks).sum(-1) / math.sqrt(ks.shape[-1])
            s = s + 2 * (1 - g) * (q_geo[:, h, t, None] * kg).sum(-1) / math.sqrt(kg.shape[-1])
            rows.append((torch.softmax(tau[h] * s, -1)[..., None] * vv).sum(1))
        out.append(torch.stack(rows, 1))
    return torch.stack(out, 2)


def called(data: list[Tensor], with_null: bool, causal: bool) -> Tensor:
    q_sem, q_geo, k_sem, k_geo, v, gate, tau, n_sem, n_geo, n_v = data
    null = NullToken(n_sem, n_geo, n_v) if with_null else None
    return decoupled_prefill(q_sem, q_geo, k_sem, k_geo, v, gate, temperature=tau, null=null, causal=causal)


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (3, 9), (1, 9)])
def test_equals_the_definition_forward_and_backward(queries: int, keys: int, causal: bool, with_null: bool) -> None:
    data = inputs(queries, keys)
    out, want = called(data, with_null, causal), definition(data, with_null, causal)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-13)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    wanted = data if with_null else data[:7]
    got = torch.autograd.grad((out * weight).sum(), wanted)
    for name, a, b in zip(NAMES, got, torch.autograd.grad((want * weight).sum(), wanted), strict=False):
        assert float((a - b).abs().max()) < 1e-12, f"the gradient of {name}"


@pytest.mark.parametrize("with_null", [False, True])
def test_nothing_depends_on_later_keys(with_null: bool) -> None:
    data = [x.detach() for x in inputs(7, 7)]
    before = called(data, with_null, True)
    for x in data[2:5]:
        x[:, :, 4:] = 1e3
    after = called(data, with_null, True)
    assert torch.equal(before[:, :, :4], after[:, :, :4]) and not torch.equal(before[:, :, 4:], after[:, :, 4:])


@pytest.mark.parametrize("with_null", [False, True])
def test_the_last_query_is_a_decode_step(with_null: bool) -> None:
    q_sem, q_geo, k_sem, k_geo, v, gate, tau, *nulls = (x.detach() for x in inputs(5, 9))
    null = NullToken(*nulls) if with_null else None
    whole = decoupled_prefill(q_sem, q_geo, k_sem, k_geo, v, gate, temperature=tau, null=null)
    q_s, q_g = gated_queries(q_sem[:, :, -1], q_geo[:, :, -1], gate[:, :, -1], tau)
    step = decoupled_decode_reference(q_s, q_g, k_sem, k_geo, v, null=null)
    assert isinstance(step, Tensor)
    torch.testing.assert_close(whole[:, :, -1], step, rtol=0, atol=1e-13)


def test_a_neutral_gate_is_the_plain_sum() -> None:
    """g = 1/2, tau = 1: s = q^s.k^s / sqrt(ds) + q^g.k^g / sqrt(dg)."""
    q_sem, q_geo, *_ = inputs(3, 3)
    half = torch.full(q_sem.shape[:-1], 0.5, dtype=q_sem.dtype)
    sem, geo = gated_queries(q_sem, q_geo, half)
    torch.testing.assert_close(sem, q_sem / math.sqrt(12))
    torch.testing.assert_close(geo, q_geo / math.sqrt(20))


def test_what_does_not_fit_is_named() -> None:
    q_sem, q_geo, k_sem, k_geo, v, gate, *_ = inputs(3, 9)
    for args, message in (
        ((q_sem, q_geo, k_sem, k_geo, v, gate[..., :1]), r"gate \(2, 4, 1\) do not fit"),
        ((q_sem, q_geo, k_sem, k_geo[:, :, 1:], v, gate), r"k_geo \(2, 2, 8, 20\).* do not belong together"),
        ((q_sem, q_geo[:, :3], k_sem, k_geo, v, gate), r"q_geo \(2, 3, 3, 20\)"),
        ((q_sem, q_geo, k_sem[:, :, :2], k_geo[:, :, :2], v[:, :, :2], gate), r"3 queries over 2 keys"),
        ((q_sem, q_geo, k_sem, k_geo, v.float(), gate), r"one dtype is needed.*v torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            decoupled_prefill(*args)
    with pytest.raises(ValueError, match=r"temperature is \(2,\); it must be \[4\]"):
        gated_queries(q_sem, q_geo, gate, torch.ones(2))
