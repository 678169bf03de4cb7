"""From logits to the next token: greedy, or drawn at a temperature from the likeliest tokens, on the device.

Nothing here waits for the device. Letters: B rows, V vocabulary. Called by `workloads.decode.steps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. temperature 0: the likeliest, the first of equals; then nothing else may be given.

    top_k: only the k likeliest (all of those that equal the k-th). top_p: only the likeliest tokens whose probability,
    after temperature and top_k, first reaches p together; at least one (Holtzman et al., 2020, arXiv:1904.09751).
    seed: of the generator; equal seeds give equal tokens for an equal batch on an equal device. The draws of a batch
    come from one generator, so a drawn row depends on which rows are beside it; a greedy one does not.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature {self.temperature}: a finite number, at least 0 (0 is greedy)")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p say what is drawn from: give a temperature above 0 with them")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: above 0 and at most 1, or None for all tokens")

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A fresh one, seeded; None when nothing is drawn."""
        return torch.Generator(device).manual_seed(self.seed) if self.temperature > 0 else None


GREEDY = Sampling()


def choose(logits_BV: Tensor, how: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """The next token of each row, int64 [B]. `generator`: from `how.generator`."""
    if how.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probs_BV = kept(logits_BV, how)
    # argmax of p / Exp(1) draws from p (the exponential race): no host sync, as multinomial's checks would need
    noise_BV = torch.empty_like(probs_BV).exponential_(generator=generator)
    return (probs_BV / noise_BV).argmax(dim=-1)


def kept(logits_BV: Tensor, how: Sampling) -> Tensor:
    """Probabilities in fp32 that are drawn from [B, V]: 0 for tokens that are cut, the rest summing to 1."""
    scaled_BV = logits_BV.float() / how.temperature
    if how.top_k is not None and how.top_k < scaled_BV.shape[-1]:
        least_B1 = scaled_BV.topk(how.top_k, dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)
    probs_BV = scaled_BV.softmax(dim=-1)
    if how.top_p is not None and how.top_p < 1:
        # by logit: probabilities of two that differ may be the same number
        order_BV = scaled_BV.argsort(dim=-1, descending=True, stable=True)
        sorted_BV = probs_BV.gather(-1, order_BV)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        cut_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= how.top_p)
        probs_BV = probs_BV.masked_fill(cut_BV, 0.0)
        probs_BV = probs_BV / probs_BV.sum(dim=-1, keepdim=True)
    return probs_BV
