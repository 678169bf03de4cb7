"""How a kernel is judged: its error against fp64, beside the error of PyTorch in the same dtype.

`judge` is the rule of every parity cell and test: max|out - ref64| <= 2 x max|torch - ref64| + 1e-5, no NaN where the
reference has none. It never widens. Called by tests, `kernels.parity` and `kernels.bench`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-5


@dataclass(frozen=True)
class Verdict:
    """err: max |out - ref64|; tol: what it may be; worst: index of the worst element; ok: err <= tol."""

    err: float
    tol: float
    worst: tuple[int, ...]
    ok: bool

    def __str__(self) -> str:
        word = "ok" if self.ok else "WRONG"
        return f"{word}: error {self.err:.3g}, allowed {self.tol:.3g}, worst at {list(self.worst)}"


def worst_of(out: Tensor, ref64: Tensor) -> tuple[float, tuple[int, ...]]:
    """Largest |out - ref64| and where; inf where one is NaN or infinite and the other is not the same.

    ValueError when the shapes differ.
    """
    if out.shape != ref64.shape:
        raise ValueError(f"out {tuple(out.shape)} and reference {tuple(ref64.shape)} differ in shape")
    if out.numel() == 0:
        return 0.0, ()
    got, want = out.double(), ref64.double()
    same = (got == want) | (got.isnan() & want.isnan())
    diff = (got - want).abs().masked_fill(same, 0.0)
    diff = diff.masked_fill(~diff.isfinite(), torch.inf)
    flat = int(diff.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), out.shape))
    return float(diff.flatten()[flat]), index


def judge(out: Tensor, ref64: Tensor, peer: Tensor | None = None, *, atol: float = FLOOR) -> Verdict:
    """`peer`: PyTorch's answer in the dtype of `out`; its error, doubled, is allowed besides `atol`."""
    err, worst = worst_of(out, ref64)
    allowed = atol
    if peer is not None:
        peer_err, _ = worst_of(peer, ref64)
        if peer_err == float("inf"):
            raise ValueError("the peer's own answer is not finite where the reference is")
        allowed += 2 * peer_err
    return Verdict(err, allowed, worst, err <= allowed)
