"""One training step: gradients over micro batches, then the update. No data, no books, no agreement between ranks.

What the trainer does at every step and what the benchmark `train-step` times are these very functions. Letters: B
sequences, T tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads.contract.config.job import TrainSpec
from workloads.train.machine import Machine
from workloads.train.optim import clip_gradients, learning_rate, set_learning_rate, step_if_finite
from workloads.train.parallel import travelling


def on_device(array: NDArray[np.generic], machine: Machine) -> Tensor:
    """A copy of a batch's array on the machine's device; the host does not wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(machine.device, non_blocking=True) if machine.cuda else tensor


def documents_of(cu_seqlens: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The number of each token's document, int32 [B, T], from the borders in the flattened rows."""
    starts = np.zeros(shape, dtype=np.int32)
    starts.reshape(-1)[cu_seqlens[1:-1]] = 1
    return np.cumsum(starts.reshape(-1), dtype=np.int32).reshape(shape)


def accumulate(
    model: nn.Module,
    x_BT: Tensor,
    y_BT: Tensor,
    *,
    machine: Machine,
    micro: int | None,
    scale: float,
    documents_BT: Tensor | None = None,
    stays: bool = False,
) -> Tensor:
    """Adds the gradients of `scale` x the summed loss over these rows; returns that sum in fp64, on the device.

    x_BT, y_BT: int64 tokens and targets on the machine's device. micro: rows a forward pass; None: all at once.
    documents_BT: numbers of their documents, where attention stays inside each. stays: no gradient is sent.
    """
    rows = x_BT.shape[0]
    micro = micro or rows
    total = torch.zeros((), dtype=torch.float64, device=machine.device)
    for start in range(0, rows, micro):
        part = slice(start, start + micro)
        with travelling(model, last=start + micro >= rows and not stays):
            with machine.autocast():
                if documents_BT is None:
                    loss = model(x_BT[part], y_BT[part])
                else:
                    loss = model(x_BT[part], y_BT[part], documents_BT=documents_BT[part])
            (loss * scale).backward()
        total += loss.detach()
    return total


def update(model: nn.Module, optimizer: torch.optim.Optimizer, train: TrainSpec, step: int) -> tuple[float, Tensor]:
    """One step of the optimizer with clipped gradients, which are gone then: (learning rate, norm before clipping).

    Where the norm is not finite, weights and optimizer stay as they were.
    """
    lr = learning_rate(train, step)
    set_learning_rate(optimizer, lr)
    grad_norm = clip_gradients(model, train.clip)
    step_if_finite(optimizer, grad_norm)
    optimizer.zero_grad(set_to_none=True)
    return lr, grad_norm
