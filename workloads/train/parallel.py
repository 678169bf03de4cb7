"""One model over several ranks: DDP, or FSDP2 in shards; and what a step must do so that gradients travel once.

Called by the trainer before the optimizer is made (FSDP2 replaces the parameters) and by its step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from workloads.contract.config.job import TrainSpec
from workloads.models.decoder import Decoder
from workloads.train.machine import Machine


def wrap(model: Decoder, machine: Machine, train: TrainSpec) -> nn.Module:
    """What to call instead of `model`. One rank: the model itself."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    return _sharded(model, machine) if train.parallel == "fsdp2" else _replicated(model, machine, train)


def _replicated(model: Decoder, machine: Machine, train: TrainSpec) -> nn.Module:
    return DistributedDataParallel(
        model,
        device_ids=[machine.device] if machine.cuda else None,
        gradient_as_bucket_view=True,
        # else DDP rearranges its buckets after the first step, and with three or more ranks the order of a sum, and so
        # its last bit, would differ between a resumed run and an unbroken one
        find_unused_parameters=train.deterministic and dist.get_world_size() > 2,
    )


def _sharded(model: Decoder, machine: Machine) -> nn.Module:
    """Every block a group of its own, the rest one: fp32 weights in shards, computed with in bf16 where the machine
    does, gradients summed in fp32."""
    mesh = init_device_mesh(machine.device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if machine.bf16 else None, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextmanager
def travelling(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients of all but the last micro batch stay on this rank."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
