"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), with the halves of a head as pairs.

Letters: B batch, T tokens, N heads, H head dimension, P positions. Tables are float32 whatever the model's dtype is:
bf16 angles are wrong beyond a few hundred positions. Called by attention modules, through their `rope` argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workloads.contract.config.job import RopeScalingSpec


def frequencies(
    head_dim: int, theta: float, scaling: RopeScalingSpec | None, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 [H / 2] in radians a position, computed as published: a frequency off by one bit is an angle off by
    6e-8 times the position. `scaling` as Llama 3.1 (Grattafiori et al., 2024, arXiv:2407.21783; its released code)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    plain = 1.0 / theta**exponent
    if scaling is None:
        return plain
    low, high, factor = scaling.low_freq_factor, scaling.high_freq_factor, scaling.factor
    turns = scaling.original_positions / (2 * math.pi / plain)  # turns within the original context
    share = (turns - low) / (high - low)
    between = (1 - share) * plain / factor + share * plain
    return torch.where(turns < low, plain / factor, torch.where(turns > high, plain, between))


class Rotation(Protocol):
    """What an attention module asks of its `rope`."""

    def rotate(self, x_BTNH: Tensor, positions: Tensor) -> Tensor: ...


class Rope:
    """cos and sin for positions 0..P-1, grown when a larger position comes."""

    def __init__(
        self,
        head_dim: int,
        theta: float,
        positions: int,
        device: torch.device | str = "cpu",
        scaling: RopeScalingSpec | None = None,
    ) -> None:
        if head_dim % 2:
            raise ValueError(f"head_dim {head_dim} must be even")
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self._grow(positions, torch.device(device))

    def _grow(self, positions: int, device: torch.device) -> None:
        place = torch.arange(positions, dtype=torch.float32, device=device)
        angle_PH = torch.outer(place, frequencies(self.head_dim, self.theta, self.scaling, device))
        self.cos_PH, self.sin_PH = angle_PH.cos(), angle_PH.sin()

    def reserve(self, positions: int, device: torch.device) -> None:
        """Make the tables cover 0..positions-1 on `device`, at least twice what they covered when they must grow.

        Called before a forward pass, not inside one.
        """
        covered = self.cos_PH.shape[0]
        if positions > covered:
            self._grow(max(positions, 2 * covered), device)
        elif self.cos_PH.device != device:
            self._grow(covered, device)

    def at(self, positions: Tensor) -> Placed:
        """The rotation by these positions (int [T] or [B, T]): looked up once, for every layer of a forward pass."""
        return Placed(*(table[positions].unsqueeze(-2) for table in (self.cos_PH, self.sin_PH)))

    def rotate(self, x_BTNH: Tensor, positions: Tensor) -> Tensor:
        """`x` turned by its positions (int [T] or [B, T]); dtype kept."""
        return self.at(positions).rotate(x_BTNH, positions)


@dataclass(frozen=True)
class Placed:
    """cos and sin [.., T, 1, H / 2] of the tokens of one forward pass."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x_BTNH: Tensor, positions: Tensor) -> Tensor:
        """`x` turned by the positions that this was made for; `positions` are not looked at again."""
        del positions
        first, second = x_BTNH.float().chunk(2, dim=-1)
        turned = torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)
        return turned.to(x_BTNH.dtype)
