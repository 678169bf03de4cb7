"""AdamW with decay on matrices only, and the learning rate of a step. Called by the trainer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from workloads.contract.config.job import TrainSpec


def learning_rate(train: TrainSpec, step: int) -> float:
    """Linear warm-up to `lr`, then a cosine down to `lr * min_lr_ratio` at the last step. Steps count from 1."""
    if step <= train.warmup_steps:
        return train.lr * step / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    low = train.lr * train.min_lr_ratio
    return low + (train.lr - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(model: nn.Module, train: TrainSpec) -> torch.optim.AdamW:
    """Norm gains are not decayed; the fused kernel exists for CPU and CUDA and is deterministic (elementwise)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(model: nn.Module, limit: float | None) -> Tensor:
    """The global gradient norm before clipping, on the device; no host sync."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
