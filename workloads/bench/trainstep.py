"""Suite `train-step`: tokens a second of a training step, and the share of the GPU's peak that its maths makes of it.

The trainer's own step (`workloads.train.step`: compiled on a GPU, micro batches, autocast in bf16 where the device has
it, clipped gradients, fused AdamW) on random tokens, without data, DDP and books. FLOPs are those of the model
(`workloads.contract.flops`), the peak is the data sheet's. Called by `workloads.bench.matrix`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.bench.rows import Measured
from kernels.bench.timing import Timing, summary
from workloads.bench.healthy import model_of
from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.contract.flops import flops_a_token
from workloads.models.decoder import Decoder
from workloads.train import attention, compiling
from workloads.train.machine import Machine
from workloads.train.optim import make_optimizer
from workloads.train.step import accumulate, update

if TYPE_CHECKING:
    from workloads.bench.suites import Context

VOCAB = 256
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """rows x tokens in one step, `micro` rows a forward pass; `gib`: the memory that a GPU must have for it."""

    size: str
    model: ModelSpec
    rows: int
    tokens: int
    micro: int | None = None
    gib: int = 0

    @property
    def name(self) -> str:
        return f"{self.size}, {self.rows} x {self.tokens} tokens"

    @property
    def shape(self) -> dict[str, int]:
        m = self.model
        return {"B": self.rows, "T": self.tokens, "D": m.dim, "L": m.layers, "V": m.vocab or VOCAB}


TINY = Case("tiny 0.8M", ModelSpec(), 16, 128)
SMALL = Case("small 25M", ModelSpec(dim=512, layers=8, heads=8, kv_heads=2), 64, 512)
MEDIUM = Case("125M", ModelSpec(dim=768, layers=12, heads=12, kv_heads=12, vocab=50304), 32, 1024, 8, 20)
LARGE = Case(
    "1.1B", ModelSpec(dim=2048, layers=22, heads=32, kv_heads=4, ffn_dim=5632, vocab=32000, tie_embeddings=False),
    8, 2048, 4, 60,
)  # fmt: skip


def cases(device: torch.device, *, quick: bool = False) -> Sequence[Case]:
    """On the CPU the tiny one alone; on a GPU those that surely fit."""
    if device.type != "cuda":
        return (TINY,)
    gib = torch.cuda.get_device_properties(device).total_memory >> 30
    return [c for c in ((TINY, SMALL) if quick else (TINY, SMALL, MEDIUM, LARGE)) if c.gib <= gib]


def measure(case: Case, context: Context) -> Measured:
    """The row; verdict "wrong" when the loss is no number or, on the same tokens again and again, does not fall."""
    device = context.device
    machine = Machine(device, device.type == "cuda" and torch.cuda.is_bf16_supported())
    dtype = "bf16" if machine.bf16 else "fp32"
    if machine.cuda:
        torch.cuda.reset_peak_memory_stats(device)
    step, weights, compiled = _stepper(case, machine, context.seed)
    timing, losses = _timed(step, device, 4 if context.quick or not machine.cuda else 10)
    right = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    extra = _figures(case, timing, machine) | {"compiled": compiled}
    extra |= {"value": extra["toks_per_s"], "unit": "tokens/s", "parameters": weights}
    extra |= {"loss_first": losses[0], "loss_last": losses[-1]}
    said = {"told": _told(extra)} if right else {"error": f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"}
    limit_us = math.nan if extra["mfu"] is None else timing.us * extra["mfu"]  # at the peak: `ratio` is the MFU
    verdict, told = ("ok", timing) if right else ("wrong", None)
    return Measured(case.name, case.shape, dtype, 0, limit_us, verdict, timing=told, extra=extra | said)


def _stepper(case: Case, machine: Machine, seed: int) -> tuple[Callable[[int], Tensor], int, bool]:
    """What makes one step and returns its loss a token, on the device; parameters that it trains; is it compiled?"""
    torch.manual_seed(seed)
    with torch.device(machine.device):
        model = Decoder(case.model, VOCAB)
    vocab = case.model.vocab or VOCAB
    random = torch.Generator(device=machine.device).manual_seed(seed)
    shape = (case.rows, case.tokens + 1)
    tokens_BT = torch.randint(0, vocab, shape, device=machine.device, generator=random)
    train = TrainSpec(steps=1000, lr=1e-4, deterministic=False)
    attention.choose(train, machine)
    compiled = compiling.wanted(train, machine) and _compiled(case, model, train, machine)
    optimizer = make_optimizer(model, train)
    count = case.rows * case.tokens

    def step(number: int) -> Tensor:
        x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        loss = accumulate(model, x_BT, y_BT, machine=machine, micro=case.micro, scale=1 / count)
        update(model, optimizer, train, number)
        return loss / count

    return step, sum(p.numel() for p in model.parameters()), compiled


def _compiled(case: Case, model: Decoder, train: TrainSpec, machine: Machine) -> bool:
    shapes = [(case.micro or case.rows, case.tokens)]
    return compiling.compile_now(
        model, model, train, machine, shapes=shapes, documents=False, agree=lambda well: [well]
    ) is None  # fmt: skip


def _timed(step: Callable[[int], Tensor], device: torch.device, steps: int) -> tuple[Timing, list[float]]:
    """Wall time of a step, the device waited for at its end: launches are a part of what a trainer pays."""
    losses, samples = [], []
    for number in range(1, WARM_UP + steps + 1):
        began = time.perf_counter()
        losses.append(step(number))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number > WARM_UP:
            samples.append(1e6 * (time.perf_counter() - began))
    return summary(samples, 1, "wall", "hot"), [float(x) for x in losses]


def _figures(case: Case, timing: Timing, machine: Machine) -> dict[str, Any]:
    count = case.rows * case.tokens
    tflops = count * flops_a_token(case.model, case.tokens, case.model.vocab or VOCAB) / timing.us / 1e6
    found: dict[str, Any] = {
        "toks_per_s": count / timing.us * 1e6, "tflops": tflops, "mfu": None, "peak_tflops": None,
        "micro_batch": case.micro or case.rows, "deterministic": False, "gpu_mem_mib": None,
    }  # fmt: skip
    if machine.cuda:
        name = torch.cuda.get_device_name(machine.device)
        found["gpu_mem_mib"] = torch.cuda.max_memory_allocated(machine.device) >> 20
        if (model := model_of(name)) is not None and machine.bf16:
            found |= {"mfu": tflops / model.bf16, "peak_tflops": model.bf16, "peak_source": model.sheet}
    return found


def _told(found: dict[str, Any]) -> str:
    """`81000 tokens/s, 245 TFLOP/s, 25 % of the peak, 9416 MiB`: what is known of it."""
    told = [f"{found['toks_per_s']:.0f} tokens/s", f"{found['tflops']:.3g} TFLOP/s"]
    told += [] if found["mfu"] is None else [f"{100 * found['mfu']:.0f} % of the peak"]
    return ", ".join([*told, *([] if found["gpu_mem_mib"] is None else [f"{found['gpu_mem_mib']} MiB"])])
