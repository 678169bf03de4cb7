"""One training step on a GPU: compiled, without a wait of the host, in any attention, skipped where it is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.models.decoder import Decoder
from workloads.train import attention, compiling
from workloads.train.machine import Machine, numerics
from workloads.train.optim import make_optimizer
from workloads.train.step import accumulate, on_device, update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

SPEC = ModelSpec(dim=256, layers=3, heads=4, kv_heads=2, vocab=4096)
ROWS, TOKENS = 8, 256


@pytest.fixture
def gpu() -> Iterator[Machine]:
    order = torch._C._get_sdp_priority_order()
    torch._dynamo.reset()
    counters.clear()
    yield Machine(torch.device("cuda", 0), True)
    torch._C._set_sdp_priority_order(order)
    for enable in ("flash", "cudnn", "mem_efficient", "math"):
        getattr(torch.backends.cuda, f"enable_{enable}_sdp")(True)
    torch._dynamo.reset()


def decoder(machine: Machine) -> Decoder:
    torch.manual_seed(0)
    with torch.device(machine.device):
        model = Decoder(SPEC, 4096)
    model.rope.reserve(TOKENS, machine.device)
    return model


def batch() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return np.random.default_rng(0).integers(0, 4096, (ROWS, TOKENS + 1)).astype(np.uint16)


@pytest.mark.parametrize("chunk", [None, 512])
def test_steps_are_one_graph_and_the_host_waits_for_nothing(gpu: Machine, chunk: int | None) -> None:
    model, train = decoder(gpu), TrainSpec(steps=100, lr=1e-3, deterministic=False)
    model.loss_chunk = chunk
    attention.choose(train, gpu)
    assert compiling.compile_now(
        model, model, train, gpu, shapes=[(4, TOKENS)], documents=False, agree=lambda well: [well]
    ) is None  # fmt: skip
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    optimizer, rows = make_optimizer(model, train), batch()
    losses = []

    def step(number: int) -> None:
        x_BT, y_BT = (on_device(a, gpu).long() for a in (rows[:, :-1], rows[:, 1:]))
        losses.append(accumulate(model, x_BT, y_BT, machine=gpu, micro=4, scale=1 / (ROWS * TOKENS)))
        update(model, optimizer, train, number)

    step(1)  # moments and handles are made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(2, 20):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [float(loss) / (ROWS * TOKENS) for loss in losses]
    assert told[0] == pytest.approx(math.log(4096), rel=0.02) and told[-1] < told[0] - 0.5


def test_a_step_that_is_no_number_is_skipped_without_a_wait(gpu: Machine) -> None:
    model, train = decoder(gpu), TrainSpec(lr=1e-2)
    optimizer, rows = make_optimizer(model, train), batch()
    x_BT, y_BT = (on_device(a, gpu).long() for a in (rows[:, :-1], rows[:, 1:]))
    accumulate(model, x_BT, y_BT, machine=gpu, micro=None, scale=1e-3)
    update(model, optimizer, train, 1)
    state = [*model.parameters(), *(t for row in optimizer.state.values() for t in row.values())]
    before = [t.clone() for t in state]
    accumulate(model, x_BT, y_BT, machine=gpu, micro=None, scale=math.nan)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, norm = update(model, optimizer, train, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isnan(float(norm)) and all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


@pytest.mark.parametrize("asked", ["auto", "flash", "cudnn", "math"])
def test_every_attention_gives_the_same_loss(gpu: Machine, asked: str) -> None:
    train, rows = TrainSpec.model_validate({"attention": asked}), batch()
    model = decoder(gpu)
    x_BT, y_BT = (on_device(a, gpu).long() for a in (rows[:, :-1], rows[:, 1:]))
    expected = float(accumulate(model, x_BT, y_BT, machine=Machine(gpu.device, False), micro=None, scale=1.0))
    attention.choose(train, gpu)
    ran = attention.audit(SPEC, TOKENS, train, gpu, documents=False)
    print(f"asked for {asked}: {ran}")
    assert asked in ("auto", ran)
    got = float(accumulate(model, x_BT, y_BT, machine=gpu, micro=None, scale=1.0))
    assert got == pytest.approx(expected, rel=2e-3)


def test_rows_of_several_documents(gpu: Machine) -> None:
    """Masked attention, on whatever kernel takes the mask, against fp32."""
    model, rows = decoder(gpu), batch()
    x_BT, y_BT = (on_device(a, gpu).long() for a in (rows[:, :-1], rows[:, 1:]))
    documents_BT = torch.arange(TOKENS, device=gpu.device).div(50).int().expand(ROWS, TOKENS)
    each = [
        float(accumulate(model, x_BT, y_BT, machine=m, micro=None, scale=1.0, documents_BT=documents_BT))
        for m in (Machine(gpu.device, False), gpu)
    ]
    whole = float(accumulate(model, x_BT, y_BT, machine=Machine(gpu.device, False), micro=None, scale=1.0))
    assert each[1] == pytest.approx(each[0], rel=2e-3) and each[0] != pytest.approx(whole, rel=1e-7)
    print(attention.audit(SPEC, TOKENS, TrainSpec(), gpu, documents=True))


@pytest.fixture
def exact(gpu: Machine) -> Iterator[None]:
    """As `train.deterministic` has it: else a compiled embedding sums its gradient in any order."""
    numerics(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("form", ["off", "model", "blocks"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_documents_in_blocks_and_under_a_mask(gpu: Machine, form: str, kv_heads: int) -> None:
    """Flex attention against the mask: in bf16 as near to fp32 as that is; the same bits twice; both times are printed.

    Rows of 1024 tokens in documents of about 100, other ones at every step: nothing is compiled again for them.
    """
    rows, tokens, steps = 8, 1024, 12
    spec = ModelSpec(dim=256, layers=3, heads=4, kv_heads=kv_heads, vocab=4096)
    random = torch.Generator().manual_seed(0)
    x_BT = torch.randint(0, 4096, (rows, tokens), generator=random).to(gpu.device)
    y_BT = x_BT.roll(-1, 1)
    numbers = [
        (torch.rand(rows, tokens, generator=random) < 0.01).int().cumsum(1).int().to(gpu.device) for _ in range(steps)
    ]
    made: dict[str, list[torch.Tensor]] = {}
    took: dict[str, float] = {}
    for name in ("fp32", "auto", "flex"):
        torch._dynamo.reset()
        counters.clear()
        machine = Machine(gpu.device, name != "fp32")
        train = TrainSpec.model_validate(
            {"attention": "flex" if name == "flex" else "auto", "compile": "off" if name == "fp32" else form}
        )
        torch.manual_seed(0)
        with torch.device(gpu.device):
            model = Decoder(spec, 4096)
        model.rope.reserve(tokens, gpu.device)
        model.flex = name == "flex"
        if name == "flex":
            assert attention.audit(spec, tokens, train, machine, documents=True) == "flex"
        if compiling.wanted(train, machine):
            assert compiling.compile_now(
                model, model, train, machine, shapes=[(rows, tokens)], documents=True, agree=lambda well: [well]
            ) is None  # fmt: skip
        graphs = counters["stats"]["unique_graphs"]

        def gradients(number: int, model: Decoder = model, machine: Machine = machine) -> list[torch.Tensor]:
            model.zero_grad()
            accumulate(model, x_BT, y_BT, machine=machine, micro=None, scale=1e-3, documents_BT=numbers[number])
            return [p.grad for p in model.parameters() if p.grad is not None]

        made[name] = [g.clone() for g in gradients(0)]
        if name == "flex":
            assert all(torch.equal(a, b) for a, b in zip(made[name], gradients(0), strict=True))
        torch.cuda.synchronize()
        began = time.perf_counter()
        for number in range(1, steps):
            gradients(number)
        torch.cuda.synchronize()
        took[name] = (time.perf_counter() - began) / (steps - 1)
        if form != "off":
            assert counters["stats"]["unique_graphs"] == graphs
    apart = {
        name: max(float((a - b).norm() / b.norm()) for a, b in zip(made[name], made["fp32"], strict=True))
        for name in ("auto", "flex")
    }
    print({"form": form, "kv_heads": kv_heads, "ms": {k: round(1e3 * v, 3) for k, v in took.items()}, "apart": apart})
    assert apart["flex"] <= max(2 * apart["auto"], 0.02)
