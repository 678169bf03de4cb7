"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), with the halves of a head as pairs.

Letters: B batch, T tokens, N heads, H head dimension, P positions. Tables are float32 whatever the model's dtype is:
bf16 angles are wrong beyond a few hundred positions. Called by attention modules, through their `rope` argument.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Rope:
    """cos and sin for positions 0..P-1, grown when a larger position comes."""

    def __init__(self, head_dim: int, theta: float, positions: int, device: torch.device | str = "cpu") -> None:
        if head_dim % 2:
            raise ValueError(f"head_dim {head_dim} must be even")
        self.head_dim, self.theta = head_dim, theta
        self._grow(positions, torch.device(device))

    def _grow(self, positions: int, device: torch.device) -> None:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        place = torch.arange(positions, dtype=torch.float32, device=device)
        angle_PH = torch.outer(place, self.theta**-exponent)
        self.cos_PH, self.sin_PH = angle_PH.cos(), angle_PH.sin()

    def reserve(self, positions: int, device: torch.device) -> None:
        """Make the tables cover 0..positions-1 on `device`. Called before a forward pass, not inside one."""
        if positions > self.cos_PH.shape[0] or self.cos_PH.device != device:
            self._grow(max(positions, self.cos_PH.shape[0]), device)

    def rotate(self, x_BTNH: Tensor, positions: Tensor) -> Tensor:
        """`x` turned by its positions (int [T] or [B, T]); dtype kept."""
        cos, sin = (table[positions].unsqueeze(-2) for table in (self.cos_PH, self.sin_PH))
        first, second = x_BTNH.float().chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x_BTNH.dtype)
