"""The loss on text that is not trained on: the same samples each time, shared by the ranks, without gradients.

Changes nothing that training depends on: no weight, no generator, no position in the data. What it gives is the same
for any number of ranks but for the order of sums. Called by the train loop. Letters: B samples, T tokens.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workloads.data.stream import Batch
from workloads.train.books import Evaluated
from workloads.train.machine import Machine
from workloads.train.step import documents_of, on_device


class Evaluator:
    """Holds the samples of one rank. `newest`: (step, loss) of the last evaluation, by any attempt."""

    def __init__(
        self, batch: Batch, *, every: int, rank: int, world_size: int, micro: int, newest: tuple[int, float] | None
    ) -> None:
        """batch: all samples, equal on all ranks. micro: rows a forward pass."""
        self._every, self._micro, self.newest = every, micro, newest
        shape = batch.x_BT.shape
        self.samples, self.tokens = shape[0], shape[0] * shape[1]
        own = slice(rank, None, world_size)
        borders = batch.cu_seqlens
        documents_BT = None if borders is None else documents_of(borders, shape)
        self._first = (batch.x_BT[:1], batch.y_BT[:1], None if documents_BT is None else documents_BT[:1])
        self._own = (batch.x_BT[own], batch.y_BT[own], None if documents_BT is None else documents_BT[own])
        self._passes = -(-len(range(0, self.samples, world_size)) // micro)  # of rank 0, which has most

    def is_due(self, step: int, last: int) -> bool:
        """Has `step` been made, should it be evaluated, and was it not yet?"""
        wanted = step == last or (step > 0 and step % self._every == 0)
        return wanted and (self.newest is None or self.newest[0] < step)

    def evaluate(self, model: nn.Module, machine: Machine, step: int) -> Evaluated:
        """Collective: every rank calls it after the same step. model: as it is trained, wrapped or not."""
        began = time.monotonic()
        total = torch.zeros((), dtype=torch.float64, device=machine.device)
        called = model.module if isinstance(model, DistributedDataParallel) else model
        # as it is written: a graph without gradients would be compiled for a few passes
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for n in range(self._passes):
                total += self._pass(called, machine, slice(n * self._micro, (n + 1) * self._micro))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
        loss = float(total) / self.tokens
        self.newest = (step, loss)
        return Evaluated(step, loss, self.samples, self.tokens, time.monotonic() - began)

    def _pass(self, model: nn.Module, machine: Machine, part: slice) -> torch.Tensor:
        """The summed loss of some of this rank's samples. A rank that has no more of them goes along with one that
        does not count: weights that lie in shards are gathered by all."""
        x_BT, y_BT, documents_BT = self._own
        counts = len(x_BT[part]) > 0
        if not counts:
            (x_BT, y_BT, documents_BT), part = self._first, slice(None)
        x, y = (on_device(a[part], machine).long() for a in (x_BT, y_BT))
        with machine.autocast():
            if documents_BT is None:
                loss = model(x, y)
            else:
                loss = model(x, y, documents_BT=on_device(documents_BT[part], machine))
        return loss.double() if counts else torch.zeros_like(loss, dtype=torch.float64)
