"""Putting new tokens into the slots behind each row of a cache, and lining ragged queries up with them: tensor
operations only. Never waits for the device and never indexes out of bounds. Called by `cache.py`; the decode kernels
append by themselves.

Letters: B rows, K key/value heads, C capacity in tokens, T new tokens, D head size (of keys, or of values).
"""

from __future__ import annotations

import torch
from torch import Tensor


def fitting(wanted_B: Tensor, lengths_B: Tensor, tokens: int, capacity: int) -> Tensor:
    """bool[B]: rows that may take wanted_B[b] of `tokens` new tokens."""
    return (wanted_B >= 0) & (wanted_B <= tokens) & (lengths_B >= 0) & (lengths_B <= capacity - wanted_B)


def put(new_BKTD: Tensor, old_BKCD: Tensor, lengths_B: Tensor, taken_B: Tensor) -> None:
    """old[b, :, lengths[b] + t] = new[b, :, t] for t < taken[b], in place; nothing else changes.

    The index is as large for every row, so what must not be written repeats the row's last new token, or, in a row that
    takes none, what slot 0 holds already: the same value twice in one slot, whichever comes first.
    """
    batch, _, tokens, _ = new_BKTD.shape
    if tokens == 0:
        return
    rows_B1 = torch.arange(batch, device=old_BKCD.device).unsqueeze(1)
    some_B1 = (taken_B > 0).unsqueeze(1)
    place_T = torch.arange(tokens, device=old_BKCD.device)
    place_BT = place_T.minimum(taken_B.unsqueeze(1) - 1).clamp(min=0)
    slots_BT = torch.where(some_B1, lengths_B.unsqueeze(1) + place_BT, 0)
    first_B1KD = old_BKCD[:, None, :, 0]
    old_BKCD[rows_B1, :, slots_BT] = new_BKTD[rows_B1, :, place_BT].where(some_B1[..., None, None], first_B1KD)


def to_the_end(x_BHTD: Tensor, taken_B: Tensor) -> Tensor:
    """Rotate each row so that token taken[b] - 1 becomes the last: there lies the causal border (bottom right)."""
    return _rotate(x_BHTD, taken_B, -1)


def to_the_front(x_BHTD: Tensor, taken_B: Tensor) -> Tensor:
    """Undo `to_the_end`, with 0 at and above taken[b], whatever was there."""
    padding_BT = torch.arange(x_BHTD.shape[2], device=x_BHTD.device) >= taken_B.unsqueeze(1)
    return _rotate(x_BHTD, taken_B, 1).masked_fill(padding_BT[:, None, :, None], 0.0)


def _rotate(x_BHTD: Tensor, taken_B: Tensor, sign: int) -> Tensor:
    batch, _, tokens, _ = x_BHTD.shape
    if tokens <= 1:
        return x_BHTD
    shift_B1 = sign * (tokens - taken_B.unsqueeze(1))
    source_BT = (torch.arange(tokens, device=x_BHTD.device) + shift_B1) % tokens
    return x_BHTD.transpose(1, 2)[torch.arange(batch, device=x_BHTD.device).unsqueeze(1), source_BT].transpose(1, 2)
