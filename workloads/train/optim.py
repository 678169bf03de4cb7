"""AdamW with decay on matrices only, the learning rate of a step, the norm of its gradients. Called by the trainer."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """The optimizer's step, which changes nothing (weights, moments, counts) where `norm` is not finite. No host sync.

    The fused kernels of AdamW read the flag on the device, as they do for torch's GradScaler.
    """
    optimizer.found_inf = (~norm.isfinite()).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()


def clip_gradients(model: nn.Module, limit: float | None) -> Tensor:
    """The global gradient norm before clipping, fp32, on the device, the same on every rank; no host sync.

    Squares are summed in fp64, so that weights in shards and whole ones give the same clipped gradients.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    sharded = any(isinstance(g, DTensor) for g in gradients)
    own = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    norm = _norm([g for g in own if g.numel()], sharded, own[0].device)
    if limit is not None:
        torch._foreach_mul_(own, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _norm(gradients: list[Tensor], sharded: bool, device: torch.device) -> Tensor:
    """Collective when `sharded`: each rank has a part of every gradient."""
    squares = torch.zeros((), dtype=torch.float64, device=device)
    if gradients:
        squares += torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float64)).square().sum()
    if sharded:
        dist.all_reduce(squares)
    return squares.sqrt().float()
