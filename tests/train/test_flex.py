"""Attention in blocks against attention under a mask, on the maths that torch has of it: forward, gradients, one graph.

torch refuses gradients of flex attention on a CPU by a check in front of them: here the check is taken away, and what
stands behind it is what the kernel on a GPU is meant to compute (`test_gpu_step.py` asks the kernel).
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.attention.flex_attention as torchs
from torch import Tensor
from torch._dynamo.utils import counters

from workloads.contract.config.job import JobSpec, ModelSpec, TrainSpec
from workloads.contract.errors import SpecError
from workloads.models import flex
from workloads.models.decoder import Decoder
from workloads.models.full import documents_mask
from workloads.train import attention, compiling
from workloads.train.machine import Machine
from workloads.train.step import accumulate

FP32, BF16 = Machine(torch.device("cpu"), False), Machine(torch.device("cpu"), True)
ROWS, TOKENS = 2, 200
"""more than one block of 128, and not a multiple of it"""
FLEX = TrainSpec(attention="flex", deterministic=False, compile="on", compile_mode="aot_eager")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def documents(seed: int) -> Tensor:
    """Numbers as `documents_of` gives them: rising over all rows; lengths of 1 to more than a block."""
    random = torch.Generator().manual_seed(seed)
    borders = torch.rand(ROWS * TOKENS, generator=random) < 0.02
    borders[torch.arange(ROWS) * TOKENS] = True
    borders[3:6] = True  # of one token each
    borders[TOKENS + 10 : 2 * TOKENS - 20] = False
    return borders.int().cumsum(0).int().view(ROWS, TOKENS)


@pytest.fixture
def with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torchs, "_validate_device", lambda *tensors: None)


def decoder(kv_heads: int = 2, layers: int = 2) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(ModelSpec(dim=32, layers=layers, heads=4, kv_heads=kv_heads), 256)
    model.rope.reserve(TOKENS, FP32.device)
    return model


def trained(model: Decoder, numbers_BT: Tensor, machine: Machine = FP32) -> tuple[float, list[Tensor]]:
    x_BT = torch.randint(0, 256, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = accumulate(
        model, x_BT, x_BT.roll(-1, 1), machine=machine, micro=None, scale=1 / x_BT.numel(), documents_BT=numbers_BT
    )
    return float(loss), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def apart(made: list[Tensor], expected: list[Tensor]) -> float:
    assert len(made) == len(expected) > 0
    return max(float((a - b).norm() / b.norm()) for a, b in zip(made, expected, strict=True))


def test_blocks_are_those_of_the_mask() -> None:
    for seed in range(3):
        numbers_BT = documents(seed)
        blocks = flex.documents_blocks(numbers_BT)
        b, q, k = (torch.arange(n) for n in (ROWS, TOKENS, TOKENS))
        seen = blocks.mask_mod(b[:, None, None], torch.tensor(0), q[None, :, None], k[None, None, :])
        assert torch.equal(seen, documents_mask(numbers_BT)[:, 0])
        dense = blocks.to_dense()[:, 0].bool()  # of 128 x 128 tokens, which are computed at all
        some = torch.nn.functional.pad(seen, (0, 56, 0, 56)).view(ROWS, 2, 128, 2, 128).any(4).any(2)
        assert torch.equal(dense, some)
    assert not bool(some.all())  # one at least is left out: above the diagonal


@pytest.mark.parametrize("kv_heads", [2, pytest.param(4, marks=pytest.mark.long)])
def test_loss_and_gradients_are_those_of_the_mask(kv_heads: int, with_gradients: None) -> None:
    model, numbers_BT = decoder(kv_heads, layers=1), documents(0)
    loss, expected = trained(model, numbers_BT)
    _, other = trained(model, torch.zeros_like(numbers_BT))
    assert apart(other, expected) > 0.1  # what is compared depends on the documents
    model.flex = True
    again, made = trained(model, numbers_BT)
    assert again == pytest.approx(loss, rel=1e-6) and apart(made, expected) <= 1e-5
    assert loss / numbers_BT.numel() == pytest.approx(math.log(256), rel=0.1)


@pytest.mark.long
def test_narrow_numbers(with_gradients: None) -> None:
    model, numbers_BT = decoder(), documents(0)
    loss, expected = trained(model, numbers_BT, BF16)
    model.flex = True
    again, made = trained(model, numbers_BT, BF16)
    assert again == pytest.approx(loss, rel=1e-3) and apart(made, expected) <= 0.03


@pytest.mark.long
@pytest.mark.parametrize(
    ("whole", "recompute"), [pytest.param(True, False, marks=pytest.mark.proof), (False, False), (False, True)]
)
def test_other_documents_need_no_other_graph(whole: bool, recompute: bool, with_gradients: None) -> None:
    """A mask is made of every batch: it must be data for the compiler, and no cause to compile again."""
    model = decoder()
    expected = [trained(model, documents(seed)) for seed in range(3)]
    model.flex = True
    model.recompute(recompute)
    compiling.arrange(model, FLEX, whole=whole)
    for seed in range(3):
        loss, made = trained(model, documents(seed))
        assert loss == pytest.approx(expected[seed][0], rel=1e-6) and apart(made, expected[seed][1]) <= 1e-5
    assert counters["stats"]["unique_graphs"] == (1 if whole else 2) and not counters["graph_break"]


def test_what_needs_no_gradient_is_masked() -> None:
    model, numbers_BT = decoder(), documents(0)
    x_BT = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    with torch.no_grad():
        masked = model(x_BT, x_BT, documents_BT=numbers_BT)
        model.flex = True
        assert torch.equal(model(x_BT, x_BT, documents_BT=numbers_BT), masked)


def test_a_cpu_refuses_and_so_does_a_job_without_documents() -> None:
    with pytest.raises(SpecError, match="CPU") as refused:
        attention.audit(ModelSpec(), TOKENS, FLEX, FP32, documents=True)
    assert refused.value.code == "E-TRAIN-013" and "auto" in str(refused.value.fix)
    job = {"name": "a", "train": {"attention": "flex"}}
    with pytest.raises(ValueError, match=r"data\.pack"):
        JobSpec.model_validate(job)
    JobSpec.model_validate({**job, "data": {"pack": "documents"}})
    with pytest.raises(ValueError, match="fsdp2"):
        TrainSpec.model_validate({"compile": "model", "parallel": "fsdp2"})
