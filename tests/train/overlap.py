"""`python -m tests.train.overlap`: one of two ranks over gloo that trains the same step uncompiled, as one graph and
compiled by blocks, and prints as JSON when DDP sent its buckets and how the gradients compare. Started by
`test_overlap.py`, with the environment of a rank.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.models.decoder import Decoder
from workloads.train import compiling, parallel
from workloads.train.machine import Machine
from workloads.train.step import accumulate

SPEC = ModelSpec(dim=64, layers=4, heads=4, kv_heads=2)
MACHINE = Machine(torch.device("cpu"), False)


class SmallBuckets(DistributedDataParallel):
    """A block is about 0.2 MB: as many buckets for it as a large one has of the usual size."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, bucket_cap_mb=0.1, **more)


def step(form: str) -> tuple[list[str], list[Tensor], int]:
    """What happened in the backward pass of a second step, in order; the gradients of it; graphs that were compiled."""
    torch._dynamo.reset()
    counters.clear()
    train = TrainSpec.model_validate({"compile": form, "compile_mode": "aot_eager", "deterministic": False})
    torch.manual_seed(0)
    model = Decoder(SPEC, 256)
    model.rope.reserve(32, MACHINE.device)
    events: list[str] = []
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(_tells(f"block {number}", events))
    wrapped = parallel.wrap(model, MACHINE, train)
    assert isinstance(wrapped, SmallBuckets)

    def sent(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, and these would be text
        events.append("bucket")
        return allreduce_hook(dist.group.WORLD, bucket)

    wrapped.register_comm_hook(None, sent)
    if compiling.wanted(train, MACHINE):
        trouble = compiling.compile_now(
            model, wrapped, train, MACHINE, shapes=[(2, 32)], documents=False, agree=lambda well: [well]
        )
        assert trouble is None, trouble
    x_BT = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(dist.get_rank()))
    for _ in range(2):  # buckets are arranged anew behind the first
        events.clear()
        wrapped.zero_grad()
        accumulate(wrapped, x_BT, x_BT.flip(1), machine=MACHINE, micro=2, scale=1 / 64)
    return list(events), [p.grad.clone() for p in model.parameters() if p.grad is not None], _graphs()


def _tells(name: str, events: list[str]) -> Any:
    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling() and args[0].requires_grad:
            args[0].register_hook(lambda gradient: events.append(name))

    return before


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def main() -> int:
    dist.init_process_group("gloo")
    parallel.DistributedDataParallel = SmallBuckets  # type: ignore[misc]
    plain_events, plain, _ = step("off")
    told: dict[str, Any] = {"off": {"events": plain_events}}
    for form in ("model", "blocks"):
        events, made, graphs = step(form)
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(made, plain, strict=True))
        told[form] = {"events": events, "apart": apart, "gradients": len(made), "graphs": graphs}
    print(json.dumps(told), flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
