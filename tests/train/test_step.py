"""One training step in this process: its loss, its gradients, what is skipped, what is compiled, what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from workloads.contract.config.job import ModelSpec, OnNanSpec, TrainSpec
from workloads.contract.errors import SpecError
from workloads.models.decoder import Decoder
from workloads.models.loss import chunk_of, linear_cross_entropy
from workloads.models.norm import Norm
from workloads.train import attention, caches, compiling
from workloads.train.ladder import NanLadder
from workloads.train.machine import Machine
from workloads.train.optim import clip_gradients, make_optimizer
from workloads.train.step import accumulate, documents_of, on_device, update

LONG = pytest.mark.long
SPEC = ModelSpec(dim=32, layers=2, heads=4, kv_heads=2)
FP32, BF16 = Machine(torch.device("cpu"), False), Machine(torch.device("cpu"), True)


def decoder(spec: ModelSpec = SPEC) -> Decoder:
    torch.manual_seed(0)
    return Decoder(spec, 256)


def tokens(rows: int = 4, count: int = 16) -> tuple[Tensor, Tensor]:
    both = torch.randint(0, 256, (rows, count + 1), generator=torch.Generator().manual_seed(1))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def gradients(model: Decoder, machine: Machine = FP32, **more: Any) -> tuple[float, list[Tensor]]:
    x_BT, y_BT = tokens()
    model.zero_grad()
    loss = accumulate(model, x_BT, y_BT, machine=machine, scale=1 / x_BT.numel(), **{"micro": None, **more})
    return float(loss), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(a: list[Tensor], b: list[Tensor], share: float) -> None:
    assert len(a) == len(b) > 0
    assert all((x - y).norm() <= share * y.norm() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("most", [1, 3, 7, 20, None])
def test_a_loss_in_chunks_is_the_loss(most: int | None) -> None:
    torch.manual_seed(0)
    hidden_ND = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    targets_N = torch.randint(0, 50, (20,))
    whole = F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")
    expected = torch.autograd.grad(whole / 7, (hidden_ND, weight_VD))
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N, most)
    got = torch.autograd.grad(loss / 7, (hidden_ND, weight_VD))
    torch.testing.assert_close(loss.double(), whole, rtol=1e-6, atol=0)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # softmax and sums are made in fp32


def test_chunks_cover_the_tokens_and_fit() -> None:
    for count in (1, 100, 5_337, 65_536, 131_072):
        for most in (None, 128, 1_000, 4_096):
            chunk = chunk_of(count, 50_304, most)
            limit = most or max(128, (1 << 29) // 50_304)
            assert 0 < chunk <= max(limit, 1) or chunk == count <= limit
            assert count <= limit or math.ceil(count / chunk) <= math.ceil(count / limit) + count // limit // 8 + 1
    assert chunk_of(65_536, 256) == 65_536  # a small vocabulary is not cut


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
def test_gradients_of_a_loss_in_chunks_and_of_micro_batches(machine: Machine) -> None:
    model = decoder()
    loss, whole = gradients(model, machine)
    model.loss_chunk = 10
    chunked_loss, chunked = gradients(model, machine)
    _, accumulated = gradients(model, machine, micro=1)
    assert chunked_loss == pytest.approx(loss, rel=1e-6 if not machine.bf16 else 1e-3)
    assert loss / 64 == pytest.approx(math.log(256), rel=0.02)
    assert_same(chunked, whole, 0.02 if machine.bf16 else 1e-5)
    assert_same(accumulated, whole, 0.03 if machine.bf16 else 1e-5)


def test_activations_are_bf16_and_masters_are_not() -> None:
    model, seen = decoder(), []
    model.blocks[1].register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    gradients(model, BF16)
    gradients(model, FP32)
    assert seen == [torch.bfloat16, torch.float32]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_a_norm_of_narrow_activations_is_taken_in_the_gains_dtype() -> None:
    torch.manual_seed(0)
    norm, x = Norm(64, eps=1e-5), torch.randn(8, 64)
    narrow = norm(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow, norm(x.bfloat16().float()).bfloat16(), rtol=0, atol=0)


def test_activation_checkpointing_changes_no_bit_and_keeps_less() -> None:
    model, kept = decoder(), []
    for wanted in (False, True):
        model.recompute(wanted)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):  # type: ignore[misc]
            kept.append((gradients(model), sum(sizes)))
    (plain, much), (again, little) = kept
    assert plain[0] == again[0] and all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))
    assert little < much


def test_documents_in_a_row_do_not_see_each_other() -> None:
    """Rows of several documents: the loss is that of the documents alone."""
    model = decoder()
    x_BT, y_BT = tokens(2, 12)
    borders = np.array([0, 5, 12, 16, 17, 24], dtype=np.int32)
    documents_BT = torch.from_numpy(documents_of(borders, (2, 12)))
    assert documents_BT.tolist() == [[0] * 5 + [1] * 7, [2] * 4 + [3] + [4] * 7]
    with torch.no_grad():
        together = model(x_BT, y_BT, documents_BT=documents_BT)
        x, y = x_BT.flatten(), y_BT.flatten()
        cuts = [slice(a, b) for a, b in pairwise(borders)]
        alone = sum(float(model(x[cut][None], y[cut][None])) for cut in cuts)
        assert float(together) == pytest.approx(alone, rel=1e-5)
        assert float(model(x_BT, y_BT)) != pytest.approx(alone, rel=1e-5)


def test_the_norm_is_the_norm_and_clips_to_the_limit() -> None:
    model = decoder()
    _, raw = gradients(model)
    expected = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in raw]))
    norm = clip_gradients(model, 0.5)
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(float(expected), rel=1e-7)
    after = torch.linalg.vector_norm(torch.cat([p.grad.double().flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    assert float(after) == pytest.approx(0.5, rel=1e-4)
    _, raw = gradients(model)
    clip_gradients(model, None)
    assert all(torch.equal(g, p.grad) for g, p in zip(raw, model.parameters(), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_without_finite_gradients_changes_nothing(poison: float) -> None:
    model, train = decoder(), TrainSpec(lr=1e-2)
    optimizer = make_optimizer(model, train)
    gradients(model)
    update(model, optimizer, train, 1)
    before = [t.clone() for t in _state(model, optimizer)]
    gradients(model)
    model.blocks[0].attention.qkv.weight.grad[3, 3] = poison  # type: ignore[union-attr, index]
    _, norm = update(model, optimizer, train, 2)
    assert not math.isfinite(float(norm))
    assert all(torch.equal(a, b) for a, b in zip(before, _state(model, optimizer), strict=True))
    assert all(p.grad is None for p in model.parameters())
    gradients(model)
    update(model, optimizer, train, 3)
    assert not any(torch.equal(a, b) for a, b in zip(before, _state(model, optimizer), strict=True))


def _state(model: Decoder, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [*model.parameters(), *(t for row in optimizer.state.values() for t in row.values())]


def test_the_ladder_skips_and_then_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    ladder = NanLadder(OnNanSpec(skips=2, total=4))
    for step, norm in enumerate([1.0, math.nan, math.inf, 1.0, math.nan, math.nan], start=1):
        ladder.note(step, 2.5, norm)
    assert (ladder.in_a_row, ladder.total) == (2, 4)
    assert (
        "warning: step 3 was skipped: loss 2.5, grad_norm inf; weights are as they were (2 of 2 in a row, 2 of 4"
        in (capsys.readouterr().err)
    )
    with pytest.raises(SpecError, match="step 7") as e:
        ladder.note(7, math.nan, math.nan)
    assert e.value.code == "E-TRAIN-012" and "train.on_nan.skips" in str(e.value.expected)
    with pytest.raises(SpecError):
        NanLadder(OnNanSpec(skips=9, total=0)).note(1, math.nan, math.nan)


@pytest.fixture
def compiler() -> Iterator[None]:
    """A fresh one, and deterministic algorithms as they were."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model: Decoder, **more: Any) -> str | None:
    train = TrainSpec(compile="on", compile_mode="aot_eager", deterministic=False)
    shapes = [(4, 16)]
    return compiling.compile_now(
        model, model, train, FP32, **{"shapes": shapes, "documents": False, "agree": lambda well: [well], **more}
    )  # fmt: skip


@pytest.mark.parametrize(
    "case", ["chunked", *(pytest.param(c, marks=LONG) for c in ("plain", "recompute", "documents"))]
)
def test_model_and_loss_are_one_graph(case: str, compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = decoder()
    model.loss_chunk = 10 if case == "chunked" else None
    model.recompute(case == "recompute")
    model.rope.reserve(16, torch.device("cpu"))
    more = {"documents_BT": torch.arange(16).expand(4, 16).div(5).int()} if case == "documents" else {}
    loss, plain = gradients(model, **more)
    assert compiled(model, documents=case == "documents") is None and "compile: done in" in capsys.readouterr().out
    assert all(p.grad is None for p in model.parameters())
    again, made = gradients(model, **more)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert again == pytest.approx(loss, rel=1e-6)
    assert_same(made, plain, 1e-5)


def test_what_cannot_be_compiled_is_trained_as_it_is_and_said_aloud(
    monkeypatch: pytest.MonkeyPatch, compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no code can be generated\nfor this")

    model = decoder()
    expected, _ = gradients(model)
    monkeypatch.setattr(compiling, "_compiled", lambda function, train: torch.compile(function, backend=broken))
    trouble = compiled(model)
    assert trouble is not None and "no code can be generated" in trouble
    told = capsys.readouterr().err
    assert "THIS RUN IS NOT COMPILED" in told and "no code can be generated" in told
    assert gradients(model)[0] == expected and "forward" not in model.__dict__


def test_a_rank_goes_on_uncompiled_when_another_cannot(compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = decoder()
    assert compiled(model, agree=lambda well: [well, False]) == "rank 1 could not"
    assert "forward" not in model.__dict__ and "THIS RUN IS NOT COMPILED" in capsys.readouterr().err


def test_caches_are_kept_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in caches.CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.setenv("ORCH_HOME", "/home/orch")
    caches.keep_caches()
    import os

    assert (
        os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/home/orch/cache/inductor"
        and os.environ["TRITON_CACHE_DIR"] == "/mine"
    )
    monkeypatch.undo()


def test_compilation_is_for_gpus_unless_it_is_asked_for() -> None:
    gpu = Machine(torch.device("cuda", 0), True)
    forms = ("auto", "on", "off", "model", "blocks")
    said = [compiling.wanted(TrainSpec(compile=c), m) for c in forms for m in (FP32, gpu)]  # type: ignore[arg-type]
    assert said == [False, True, True, True, False, False, True, True, True, True]
    assert TrainSpec.model_validate({"compile": False}).compile == "off"  # YAML's own reading of `off`


def test_the_attention_that_ran_is_named() -> None:
    assert attention.audit(SPEC, 16, TrainSpec(), FP32, documents=False) in ("flash", "math")
    assert attention.audit(SPEC, 16, TrainSpec(), FP32, documents=True) in ("flash", "math")


def test_a_batch_is_copied_whole_whatever_its_strides() -> None:
    rows = np.arange(12, dtype=np.uint16).reshape(2, 6)
    assert on_device(rows[:, 1:], FP32).long().tolist() == rows[:, 1:].tolist()
