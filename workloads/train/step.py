"""One training step: gradients over micro batches, then the update. No data, no books, no agreement between ranks.

What the trainer does at every step and what the benchmark `train-step` times are these very functions. Letters: B
sequences, T tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workloads.contract.config.job import TrainSpec
from workloads.train.machine import Machine
from workloads.train.optim import clip_gradients, learning_rate, set_learning_rate


def accumulate(
    model: nn.Module, x_BT: Tensor, y_BT: Tensor, *, machine: Machine, micro: int | None, scale: float
) -> Tensor:
    """Adds the gradients of `scale` x the summed loss over these rows; returns that sum in fp64, on the device.

    x_BT, y_BT: int64 tokens and targets on the machine's device. micro: rows a forward pass; None: all at once.
    """
    rows = x_BT.shape[0]
    micro = micro or rows
    total = torch.zeros((), dtype=torch.float64, device=machine.device)
    for start in range(0, rows, micro):
        last = start + micro >= rows
        with nullcontext() if last else _no_sync(model):
            with machine.autocast():
                logits_BTV = model(x_BT[start : start + micro])
            targets = y_BT[start : start + micro].flatten()
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets, reduction="sum")
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients of all but the last micro batch stay on this rank."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def update(model: nn.Module, optimizer: torch.optim.Optimizer, train: TrainSpec, step: int) -> tuple[float, Tensor]:
    """One step of the optimizer with clipped gradients, which are gone then: (learning rate, norm before clipping)."""
    lr = learning_rate(train, step)
    set_learning_rate(optimizer, lr)
    grad_norm = clip_gradients(model, train.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return lr, grad_norm
