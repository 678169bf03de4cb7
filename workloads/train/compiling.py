"""torch.compile of a model and its loss: when it is done, in which form, and what happens when it cannot be.

It is done once, before the first step, on tokens that are thrown away, so that no step is measured with it and that
the ranks can agree: where one of them cannot compile, all of them train as the model is, which is said aloud. Called
by the trainer and by the benchmark of its step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from workloads.contract.config.job import TrainSpec
from workloads.contract.errors import escape
from workloads.models.decoder import Decoder
from workloads.models.loss import linear_cross_entropy
from workloads.train.machine import Machine, lost_peer
from workloads.train.step import accumulate


def wanted(train: TrainSpec, machine: Machine) -> bool:
    return machine.cuda if train.compile == "auto" else train.compile != "off"


def as_one(model: Decoder, wrapped: nn.Module, train: TrainSpec, machine: Machine) -> bool:
    """Is it one graph, or one a block?

    The backward pass of one graph is one node of autograd: DDP hears of every gradient when the last one is made, and
    has nothing left to send them beside. Over NVLink that costs less than the fusions that blocks lose
    (runbooks/results/training.jsonl, `ddp-2-*`). In shards (FSDP2) the weights of a block come and go around it.
    """
    if isinstance(wrapped, FSDPModule):
        return False
    if train.compile in ("model", "blocks"):
        return train.compile == "model"
    return model is wrapped or machine.linked


def arrange(model: Decoder, train: TrainSpec, *, whole: bool) -> None:
    """From the next call on `model` is compiled: in one (`whole`), or each block and the loss alone.

    Blocks are equal, and are compiled once for all of them.
    """
    # the other way to let gradients travel early: the graph of the whole model is cut where DDP's buckets end. It
    # cuts at buckets and not at blocks (each piece is compiled anew), and around nothing that has a graph of its own
    # inside (checkpointing, flex attention, the loss in chunks)
    torch._dynamo.config.optimize_ddp = False
    if train.deterministic and hasattr(torch._inductor.config, "deterministic"):  # no block size is chosen by a race
        torch._inductor.config.deterministic = True
    if whole:
        _replace(model, "forward", _compiled(model.forward, train))
        return
    for block in model.blocks:
        _replace(block, "forward", _compiled(block.forward, train))
    model.loss_of = _compiled(linear_cross_entropy, train)


def _compiled(function: Callable[..., Any], train: TrainSpec) -> Callable[..., Any]:
    if train.compile_mode == "aot_eager":
        return torch.compile(function, dynamic=False, backend="aot_eager")
    return torch.compile(function, dynamic=False, mode=train.compile_mode)


def _replace(module: nn.Module, name: str, value: Callable[..., Any]) -> None:
    """Of this module alone; hooks around it stay outside of what is compiled."""
    setattr(module, name, value)


def put_back(model: Decoder) -> None:
    """As it was before `arrange`."""
    for module in (model, *model.blocks):
        module.__dict__.pop("forward", None)
    model.loss_of = linear_cross_entropy
    torch._dynamo.reset()


def compile_now(
    model: Decoder,
    wrapped: nn.Module,
    train: TrainSpec,
    machine: Machine,
    *,
    shapes: Iterable[tuple[int, int]],
    documents: bool,
    agree: Callable[[bool], Sequence[bool]],
) -> str | None:
    """Compile forward and backward for these shapes (rows, tokens); why it could not be done, None when it was.

    Collective. `documents`: rows hold several. `agree`: what every rank says. No gradient is left behind, nothing is
    drawn from a generator. Memory that is not there, and peers that are gone, are raised.
    """
    arrange(model, train, whole=as_one(model, wrapped, train, machine))
    began, trouble = time.perf_counter(), None
    try:
        # else blocks behind the eighth that differs would run as they are, and nobody would know
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for rows, tokens in shapes:
                _try(wrapped, machine, rows, tokens, documents=documents)
    except Exception as e:  # whatever a compiler, a code generator or a C++ compiler raises
        if isinstance(e, torch.OutOfMemoryError) or lost_peer(e):
            raise
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        trouble = f"{type(e).__name__}: {escape(' '.join(lines[:2]), 300)}"
    wrapped.zero_grad(set_to_none=True)
    ill = [rank for rank, well in enumerate(agree(trouble is None)) if not well]
    if not ill:
        print(f"compile: done in {time.perf_counter() - began:.1f} s", flush=True)
        return None
    put_back(model)
    why = trouble or f"rank {ill[0]} could not"
    print(
        f"warning: THIS RUN IS NOT COMPILED and slower for it: torch.compile failed: {why}\n"
        "  train.compile=false says so on purpose; the log of a rank with TORCH_LOGS=dynamo in its `env` says more",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return why


def _try(wrapped: nn.Module, machine: Machine, rows: int, tokens: int, *, documents: bool) -> None:
    """A forward and a backward pass over zeros; DDP's gradients stay here, for a rank that fails sends none."""
    x_BT = torch.zeros(rows, tokens, dtype=torch.int64, device=machine.device)
    documents_BT = torch.zeros_like(x_BT, dtype=torch.int32) if documents else None
    accumulate(
        wrapped, x_BT, x_BT.clone(), machine=machine, micro=None, scale=0.0, documents_BT=documents_BT,
        stays=isinstance(wrapped, DistributedDataParallel),
    )  # fmt: skip
    if machine.cuda:
        torch.cuda.synchronize(machine.device)
