"""Suite `train-step`: the trainer's own step, its figures, and a step that learns nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch

from kernels.bench.probe import Bandwidth
from orchestrator.jobs.sizes import parameters
from workloads.bench import trainstep
from workloads.bench.suites import Context
from workloads.bench.trainstep import LARGE, MEDIUM, SMALL, TINY
from workloads.contract.config.job import ModelSpec
from workloads.contract.flops import flops_a_token

CPU = torch.device("cpu")
SHORT = replace(TINY, model=ModelSpec(dim=32, layers=2, heads=4, kv_heads=2), rows=4, tokens=16, micro=2)


def context() -> Context:
    return Context(CPU, True, 0, cast("Bandwidth", None))  # the probe is not used


def test_a_step_on_the_cpu() -> None:
    (case,) = trainstep.cases(CPU)
    assert case == TINY
    row = trainstep.measure(SHORT, context())
    assert row.verdict == "ok" and row.timing is not None and row.dtype == "fp32" and math.isnan(row.limit_us)
    e = row.extra
    assert e["toks_per_s"] == pytest.approx(64 / row.timing.us * 1e6) and e["parameters"] == parameters(SHORT.model)
    assert e["tflops"] == pytest.approx(e["toks_per_s"] * flops_a_token(SHORT.model, 16, 256) / 1e12)
    assert e["loss_last"] < e["loss_first"] and (e["mfu"], e["gpu_mem_mib"]) == (None, None)


def test_a_step_that_does_not_learn_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainstep, "update", lambda model, optimizer, train, step: optimizer.zero_grad())
    row = trainstep.measure(SHORT, context())
    assert row.verdict == "wrong" and row.timing is None and row.extra["loss_first"] == row.extra["loss_last"]


def test_the_models_are_as_large_as_they_are_called() -> None:
    sizes = [parameters(c.model) / 1e6 for c in (TINY, SMALL, MEDIUM, LARGE)]
    assert sizes == pytest.approx([0.8, 25, 125, 1100], rel=0.1)


def test_flops_of_a_model_that_was_counted_by_hand() -> None:
    """6 x (q, k, v, out 8 x 8 x 6; up, gate, down 3 x 8 x 64; head 10 x 8), 12 x 1 x 2 x 4 x 5."""
    model = ModelSpec(dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn_dim=64)
    weights = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 64 + 10 * 8
    assert flops_a_token(model, 5, 10) == 6 * weights + 12 * 2 * 4 * 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("case", [TINY, SMALL, MEDIUM, LARGE], ids=lambda c: c.size)
def test_a_step_on_a_card(case: trainstep.Case) -> None:
    device = torch.device("cuda", 0)
    if case not in trainstep.cases(device):
        pytest.skip("too large for this card")
    row = trainstep.measure(case, Context(device, False, 0, cast("Bandwidth", None)))
    assert row.verdict == "ok" and row.extra["gpu_mem_mib"] > 0 and 0 < (row.extra["mfu"] or 0.1) < 1, row
    print(case.name, row.extra)
