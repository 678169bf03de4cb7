"""The models that `workloads.bench.nanogpt` trains side by side, and a step of each. Nothing is timed or told here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.contract.flops import flops_a_token, parameters
from workloads.models.decoder import Decoder
from workloads.train import compiling
from workloads.train.machine import Machine
from workloads.train.optim import make_optimizer
from workloads.train.step import accumulate, update


@dataclass(frozen=True)
class Size:
    dim: int
    layers: int
    heads: int
    vocab: int
    rows: int
    tokens: int


@dataclass
class Contender:
    """`step(n)` trains the n-th step on the same tokens and returns its loss a token, on the device."""

    name: str
    parameters: int
    flops: int
    step: Callable[[int], Tensor]
    eager_loss: float
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """a step, one a round"""
    peak_mib: int | None = None
    wrong: str | None = None


def spec_for(size: Size, kv_heads: int, target: int) -> ModelSpec:
    """Our model of that size whose feed-forward, a multiple of dim / 12, brings it nearest to `target` parameters."""
    shape = {"dim": size.dim, "layers": size.layers, "heads": size.heads, "kv_heads": kv_heads, "vocab": size.vocab}
    unit = max(1, size.dim // 12)  # 64 of 768
    specs = [ModelSpec.model_validate({**shape, "ffn_dim": unit * n}) for n in range(1, 73)]
    return min(specs, key=lambda s: abs(parameters(s, size.vocab) - target))


def load_nanogpt(path: Path, size: Size) -> nn.Module:
    """Its own GPT, without biases and dropout, as its train.py makes it."""
    found = importlib.util.spec_from_file_location("nanogpt_model", path)
    if found is None or found.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=size.tokens, vocab_size=size.vocab, n_layer=size.layers, n_head=size.heads, n_embd=size.dim,
        dropout=0.0, bias=False,
    )  # fmt: skip
    model: nn.Module = module.GPT(config)
    return model


@dataclass
class Made:
    """A model of ours, which `ours` and `bare` train in turns: what is compiled is the same."""

    spec: ModelSpec
    model: Decoder
    optimizer: torch.optim.Optimizer
    eager_loss: float

    def __post_init__(self) -> None:
        self._first = [p.detach().cpu().clone() for p in self.model.parameters()]

    def begin_again(self) -> None:
        """With the weights that it was made with, and no moments."""
        with torch.no_grad():
            for p, first in zip(self.model.parameters(), self._first, strict=True):
                p.copy_(first)
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.found_inf = None  # type: ignore[attr-defined]


@dataclass
class Bench:
    size: Size
    machine: Machine
    train: TrainSpec
    nanogpt: Path | None

    def __post_init__(self) -> None:
        random = torch.Generator(device=self.machine.device).manual_seed(0)
        shape = (self.size.rows, self.size.tokens + 1)
        tokens_BT = torch.randint(0, self.size.vocab, shape, device=self.machine.device, generator=random)
        self.x_BT, self.y_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
        self.count = self.size.rows * self.size.tokens
        self.target = self._target()
        self._made: dict[int, Made] = {}

    def _target(self) -> int:
        if self.nanogpt is None:
            return parameters(spec_for(self.size, self.size.heads, 12 * self.size.layers * self.size.dim**2), 0)
        with torch.device("meta"):
            return sum(p.numel() for p in load_nanogpt(self.nanogpt, self.size).parameters())

    def contender(self, name: str) -> Contender:
        """Built and compiled. Takes tens of seconds on a GPU."""
        if name == "nanogpt":
            return self._nanogpt()
        kv_heads = min(2, self.size.heads) if name == "gqa" else self.size.heads
        made = self._made[kv_heads] = self._made.get(kv_heads) or self._make(kv_heads)
        made.begin_again()
        step = self._bare(made) if name == "bare" else self._ours(made)
        flops = flops_a_token(made.spec, self.size.tokens, self.size.vocab)
        return Contender(name, sum(p.numel() for p in made.model.parameters()), flops, step, made.eager_loss)

    def _make(self, kv_heads: int) -> Made:
        """Compiled once, for each loop around it."""
        torch.manual_seed(0)
        spec = spec_for(self.size, kv_heads, self.target)
        with torch.device(self.machine.device):
            model = Decoder(spec, self.size.vocab)
        model.loss_chunk = self.train.loss_chunk
        model.rope.reserve(self.size.tokens, self.machine.device)
        with torch.no_grad(), self.machine.autocast():
            eager = float(model(self.x_BT, self.y_BT)) / self.count
        if compiling.wanted(self.train, self.machine):
            shapes = [(self.size.rows, self.size.tokens)]
            trouble = compiling.compile_now(
                model, model, self.train, self.machine, shapes=shapes, documents=False, agree=lambda well: [well]
            )
            if trouble:
                raise RuntimeError(trouble)
        return Made(spec, model, make_optimizer(model, self.train), eager)

    def _ours(self, made: Made) -> Callable[[int], Tensor]:
        model, optimizer = made.model, made.optimizer

        def step(number: int) -> Tensor:
            loss = accumulate(
                model, self.x_BT, self.y_BT, machine=self.machine, micro=self.train.micro_batch, scale=1 / self.count
            )
            update(model, optimizer, self.train, number)
            return loss / self.count

        return step

    def _bare(self, made: Made) -> Callable[[int], Tensor]:
        def step(number: int) -> Tensor:
            del number
            with self.machine.autocast():
                loss = made.model(self.x_BT, self.y_BT) / self.count
            return _trained(made.model, made.optimizer, loss)

        return step

    def _nanogpt(self) -> Contender:
        if self.nanogpt is None:
            raise RuntimeError("--nanogpt says where its model.py lies")
        torch.manual_seed(0)
        with torch.device(self.machine.device):
            model = load_nanogpt(self.nanogpt, self.size)
        with torch.no_grad(), self.machine.autocast():
            eager = float(model(self.x_BT, self.y_BT)[1])
        called: Any = torch.compile(model) if compiling.wanted(self.train, self.machine) else model
        optimizer = make_optimizer(model, self.train)

        def step(number: int) -> Tensor:
            del number
            with self.machine.autocast():
                loss = called(self.x_BT, self.y_BT)[1]
            return _trained(model, optimizer, loss)

        count = sum(p.numel() for p in model.parameters())
        seen = 12 * self.size.layers * self.size.dim * self.size.tokens
        flops = 6 * (count - self.size.tokens * self.size.dim) + seen
        return Contender("nanogpt", count, flops, step, eager)


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
