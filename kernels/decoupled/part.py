"""One part of the decoupled cache: k_sem, k_geo or v of every slot, as codes and scales or as fp16 values.

Owns the storage order and the writing of single entries; knows nothing of lengths, rings or other parts, and never
waits for the device. Called by `cache` alone; the kernels read its attributes.

Shape letters: B rows, H KV heads, Z storage slots (capacity rounded up to 64), G groups of 32 of a token, Y bytes of
a group's codes, D values of a token, n single tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.decoupled.codec import CODES, dequantize, groups_of, quantize
from kernels.decoupled.policy import PartFormat


class Part:
    """One part of the cache. Group-major, so that every (row, head, group) is one contiguous stream of bytes:

    codes uint8 [B, H, G, Z, Y] and scales fp16 [B, H, G, Z] (values None), or, for fp16, values [B, H, Z, D] alone.
    """

    def __init__(self, form: PartFormat, dim: int, shape_BHZ: tuple[int, int, int], device: torch.device) -> None:
        self.kind = form.kind
        self.dim = dim
        self.codes: Tensor | None = None
        self.scales: Tensor | None = None
        self.values: Tensor | None = None
        batch, heads, slots = shape_BHZ
        groups = groups_of(dim)
        if form.kind == "fp16":
            self.values = torch.empty(batch, heads, slots, dim, dtype=torch.float16, device=device)
        else:
            code = CODES[form.kind]
            self.codes = torch.empty(batch, heads, groups, slots, code.group_bytes, dtype=torch.uint8, device=device)
            self.scales = torch.empty(batch, heads, groups, slots, dtype=torch.float16, device=device)

    def tensors(self) -> tuple[Tensor, ...]:
        """What is stored: (values,) or (codes, scales)."""
        return tuple(x for x in (self.codes, self.scales, self.values) if x is not None)

    def write(self, row_n: Tensor, at_n: Tensor, x_nHD: Tensor) -> None:
        """Write n tokens, each into its row and slot (no two the same)."""
        for stored, new in zip(self._token_major(), self._encode(x_nHD), strict=True):
            stored[row_n, :, at_n] = new

    def write_one(self, at_B: Tensor, x_BHD: Tensor, chosen_B: Tensor) -> None:
        """Write one token a row into slot `at_B` of the rows chosen, without looking at the device."""
        for stored, new in zip(self._token_major(), self._encode(x_BHD), strict=True):
            put(stored, at_B, new, chosen_B)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """Every slot's values [B, H, Z, D]; slots that no token was written to may be anything, NaN included."""
        if self.values is not None:
            return self.values.to(dtype)
        codes_BHZGY, scales_BHZG = self._token_major()
        return dequantize(CODES[self.kind], codes_BHZGY.flatten(-2), scales_BHZG, self.dim, dtype)

    def _token_major(self) -> tuple[Tensor, ...]:
        if self.values is not None:
            return (self.values,)
        return tuple(x.transpose(2, 3) for x in self.tensors())

    def _encode(self, x_D: Tensor) -> tuple[Tensor, ...]:
        if self.values is not None:
            return (x_D,)
        codes_Y, scales_G = quantize(CODES[self.kind], x_D, check=False)
        return codes_Y.reshape(*scales_G.shape, -1), scales_G


def take(stored_BHZ: Tensor, at_B: Tensor) -> Tensor:
    """The entry at slot at_B of each row: [B, H, Z, ...] -> [B, H, ...]."""
    return stored_BHZ.gather(2, _index(stored_BHZ, at_B)).squeeze(2)


def put(stored_BHZ: Tensor, at_B: Tensor, new_BH: Tensor, chosen_B: Tensor) -> None:
    """Write [B, H, ...] into slot at_B of the chosen rows; in the others the slot keeps what it holds."""
    index = _index(stored_BHZ, at_B)
    chosen = chosen_B.reshape(-1, *[1] * (stored_BHZ.dim() - 1))
    stored_BHZ.scatter_(2, index, torch.where(chosen, new_BH.unsqueeze(2), stored_BHZ.gather(2, index)))


def _index(stored_BHZ: Tensor, at_B: Tensor) -> Tensor:
    shape = list(stored_BHZ.shape)
    shape[2] = 1
    return at_B.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
