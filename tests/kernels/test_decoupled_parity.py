"""The parity matrix of decoupled decode in the interpreter; and that it finds each fault that others made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import parity as runner
from kernels.covering import uncovered
from kernels.decoupled import api, cases
from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.parity import FACTORS, FULL, USUAL, _allowed, cells, run
from kernels.decoupled.reference import NullToken, State, Tail, merge, streaming_reference
from kernels.parity import Cell, Wrong

CELLS = {cell.id: cell for cell in cells(full=False)}
Decode = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if k % 2 else []) for k, name in enumerate(CELLS)]
)
def test_cell(name: str, device: torch.device) -> None:
    verdict = run(CELLS[name], device, 0)
    assert verdict.ok, f"{verdict}\n{runner.repeat(CELLS[name], device.type, 0)}"


def test_every_two_values_meet() -> None:
    for full, factors in ((False, FACTORS), (True, FULL)):
        made = cells(full)
        assert len({cell.id for cell in made}) == len(made) <= (300 if full else 60)
        left = uncovered(factors, [cell.params for cell in made if all(cell.params[f] in factors[f] for f in factors)])
        assert all(not _allowed(pair) for pair in left), left


def test_what_needs_a_gpu_says_so() -> None:
    full = cells(full=True)
    assert not any(cell.gpu_only for cell in CELLS.values())
    assert {cell.params["kind"] for cell in full if cell.gpu_only} == {"decode", "graph", "offsets"}
    plain = [cell.params for cell in full if cell.params["kind"] == "decode" and cell.params["dtype"] == "fp16"]
    assert any(params["prefix"] == 131072 for params in plain)
    assert all(cell.gpu_only == (cell.params["prefix"] == 131072) for cell in full if cell.params in plain)


def stand_in(
    *,
    null_once: bool = True,
    drop_last: bool = False,
    phantom: bool = False,
    stale: bool = False,
    without_tail: bool = False,
    skip_empty: bool = False,
    drop_remainder: bool = False,
    no_lse: bool = False,
) -> Decode:
    """The api's decode in PyTorch, right by default, or with one of the known faults."""

    def decode(
        q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, *, null: NullToken | None = None,
        passes: int | None = None, partitions: int | None = None, out: Tensor, return_lse: bool
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        count = partitions if partitions is not None else 1
        k_sem, k_geo, v = (part.decoded(torch.float32) for part in cache.parts)
        lengths, tail = cache.packed.clone(), cache.tail()
        if phantom:  # loaded as 0 beside the end and not masked: each adds exp(0 - m)
            past = (torch.arange(k_sem.shape[2]) >= lengths[:, None])[:, None, :, None]
            k_sem, k_geo, v = (x.masked_fill(past, 0.0) for x in (k_sem, k_geo, v))
            lengths = (lengths + 63) // 64 * 64
        if stale:
            lengths = (lengths + 1).clamp(max=k_sem.shape[2])
        if drop_last:
            lengths = (lengths - 1).clamp(min=0)
        if drop_remainder and count:
            lengths = lengths // count * count
        if without_tail:
            tail = replace(tail, visible_BR=torch.zeros_like(tail.visible_BR))

        def part(which: NullToken | None, at: int) -> tuple[Tensor, Tensor]:
            at = max(at, 1) if bool(lengths.any()) else at
            both = streaming_reference(
                q_sem, q_geo, k_sem, k_geo, v, lengths, partitions=at, null=which,
                tail=tail if tail.visible_BR.shape[1] else None, dtype=torch.float32, return_lse=True,
            )  # fmt: skip
            assert isinstance(both, tuple)
            return both

        result, lse = part(null, count)
        if not null_once and null is not None and count > 1:
            extra = State(*_null_state(q_sem, q_geo, null, cache, count - 1))
            whole = merge([State(lse, torch.ones_like(lse), result), extra])
            result, lse = whole.o_BHV / whole.d_BH[..., None], whole.m_BH + whole.d_BH.log()
        if skip_empty and count == 0:
            return out, lse
        out.copy_(result)
        return out, lse + 0.01 if no_lse else lse

    return decode


def _null_state(
    q_sem: Tensor, q_geo: Tensor, null: NullToken, cache: QuantizedCache, times: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The null token alone, counted `times` times."""
    group = q_sem.shape[1] // cache.kv_heads
    k_sem, k_geo, v = (
        x.float().repeat_interleave(group, 1) for x in null.rows(cache.batch, cache.kv_heads, cache.dims)
    )
    s_BH = (q_sem.float() * k_sem).sum(-1) + (q_geo.float() * k_geo).sum(-1)
    return s_BH, torch.full_like(s_BH, times), times * v


def fails(cell: Cell, device: torch.device) -> bool:
    try:
        return not run(cell, device, 0).ok
    except Wrong:
        return True


FAULTS: dict[str, dict[str, Any]] = {
    "the null token counted once a partition": {"null_once": False},
    "keys past the end loaded as 0 and not masked": {"phantom": True},
    "one slot too many read": {"stale": True},
    "the last key dropped": {"drop_last": True},
    "keys that do not fill a partition dropped": {"drop_remainder": True},
    "the tail left out": {"without_tail": True},
    "no reduce without partitions": {"skip_empty": True},
    "a wrong log-sum-exp": {"no_lse": True},
}
DECODES = [cell for cell in CELLS.values() if cell.params["kind"] == "decode" and cell.params["data"] == "normal"]


def test_the_stand_in_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "decoupled_decode", stand_in())
    assert [cell.id for cell in CELLS.values() if fails(cell, torch.device("cpu"))] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_kernel_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "decoupled_decode", stand_in(**FAULTS[fault]))
    found = [cell.params for cell in DECODES if fails(cell, torch.device("cpu"))]
    assert len(found) >= 3, f"{fault}: found in {len(found)} of {len(DECODES)} cells"
    if fault.startswith("the null"):
        assert all(params["null"] != "none" for params in found)


def test_the_runner_says_no_go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(cell.id for cell in DECODES if cell.params["null"] == "strided" and cell.params["plan"] == "2p7")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the runner sets both; put back by the fixture
    monkeypatch.setenv("KERNELS_BACKEND", "triton")
    monkeypatch.setattr(api, "decoupled_decode", stand_in(null_once=False))
    assert runner.main(["decoupled", "--device", "cpu", "--only", name]) == 1
    said = capsys.readouterr().out
    assert f"python -m kernels.parity decoupled --device cpu --only '{name}'" in said
    assert "no-go: 1 of 1 cells wrong" in said


def test_a_changed_cache_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = stand_in()

    def scribbles(q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, **options: Any) -> tuple[Tensor, Tensor]:
        both = right(q_sem, q_geo, cache, **options)
        cache.sem.tensors()[0].flatten()[-1] = 1
        return both

    monkeypatch.setattr(api, "decoupled_decode", scribbles)
    with pytest.raises(Wrong, match="the cache changed"):
        run(DECODES[0], torch.device("cpu"), 0)


def test_the_inputs_are_as_said() -> None:
    """Poison everywhere that holds no token, a tail that is full, half full and empty, scores of 1e4 where big."""
    problem = cases.build({**USUAL, "heads": (3, 8, 2), "prefix": 129, "resid": 6}, torch.device("cpu"), 0)
    cache = problem.cache
    assert cache.packed.tolist() == [129, 0, 64] and (cache.lengths - cache.packed).tolist() == [6, 3, 0]
    assert isinstance(cache.tail(), Tail) and cache.tail().visible_BR.sum(1).tolist() == [6, 3, 0]
    scales = cache.v.scales
    assert scales is not None and scales[0, :, :, :129].isfinite().all() and scales[0, :, :, 129:].isnan().all()
    assert cache.tail_v[2].isnan().all() and not cache.dequantized(torch.float32)[2].isnan().any()
    big = cases.build({**USUAL, "data": "big"}, torch.device("cpu"), 0)
    _, lse = cases.expected(big)
    assert lse.max() > 5e3
