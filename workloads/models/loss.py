"""Cross-entropy of a head's logits, a few tokens at a time: the logits of a whole batch exist at no time.

Gradients are made while the loss is, from the same logits, so that nothing is computed twice (as in Liger Kernel, Hsu
et al., 2024, arXiv:2410.10989): per chunk of C tokens, logits [C, V] -> loss, d logits -> d hidden and a share of
d weight, summed in fp32. Letters: N tokens, C tokens of a chunk, D model, V vocabulary. Called by `Decoder`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOGITS = 1 << 29
"""of one chunk, when nobody says how many tokens: 1 GiB in bf16"""
ROUND = 128


def chunk_of(tokens: int, vocab: int, most: int | None = None) -> int:
    """Tokens of a chunk: at most `most`, or as many as `MOST_LOGITS` allows, in chunks of about equal length."""
    limit = most or max(ROUND, MOST_LOGITS // vocab)
    if tokens <= limit:
        return tokens
    even = math.ceil(tokens / math.ceil(tokens / limit))
    return min(limit, math.ceil(even / ROUND) * ROUND)


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, most: int | None = None) -> Tensor:
    """The sum over tokens of -log softmax(hidden @ weight.T)[target], fp32, differentiable in hidden and weight.

    Under autocast the products are made in its dtype, and softmax and sums in fp32. One chunk is torch's own path.
    """
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    chunk = chunk_of(hidden_ND.shape[0], weight_VD.shape[0], most)
    if chunk >= hidden_ND.shape[0]:
        logits_NV = F.linear(hidden_ND, weight_VD)
        return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
    if not torch.is_grad_enabled():
        pairs = zip(torch.split(hidden_ND, chunk), torch.split(targets_N, chunk), strict=True)
        losses = [F.cross_entropy(F.linear(h, weight_VD).float(), t, reduction="sum") for h, t in pairs]
        return torch.stack(losses).sum()
    return _Chunked.apply(hidden_ND, weight_VD, targets_N, chunk)  # type: ignore[no-any-return, no-untyped-call]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            loss = hidden_ND.new_zeros((), dtype=torch.float32)
            d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
            d_hidden = []
            for start in range(0, hidden_ND.shape[0], chunk):
                part, d_part_CD, d_weight = _chunk(
                    hidden_ND[start : start + chunk], weight_VD, targets_N[start : start + chunk]
                )
                loss = loss + part
                d_hidden.append(d_part_CD)
                d_weight_VD = d_weight_VD + d_weight
        ctx.save_for_backward(torch.cat(d_hidden), d_weight_VD)
        ctx.dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        scale = grads[0].float()
        return (d_hidden_ND * scale).to(ctx.dtype), (d_weight_VD * scale).to(ctx.dtype), None, None


def _chunk(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, d hidden [C, D], d weight [V, D]) of the unscaled sum."""
    logits_CV = (hidden_CD @ weight_VD.T).float()
    normed_CV = logits_CV - torch.logsumexp(logits_CV, dim=-1, keepdim=True)
    loss = -normed_CV.gather(1, targets_C.unsqueeze(1)).sum()
    hit_CV = torch.arange(weight_VD.shape[0], device=targets_C.device) == targets_C.unsqueeze(1)
    d_logits_CV = (normed_CV.exp() - hit_CV.float()).to(hidden_CD.dtype)
    return loss, d_logits_CV @ weight_VD, d_logits_CV.T @ hidden_CD
