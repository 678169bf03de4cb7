"""Which variant of the kernel a shape gets, and into how many splits: pure functions over one small measured table.

Never touches a device. Called by `plan.py`; `tune.py` measures what the table says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kernels.device import ceil_div, next_power_of_2

Form = Literal["one", "dot", "swap"]
MAX_DIM = 256
MAX_SPLITS = 128
MIN_BLOCKS_A_SPLIT = 2  # of the capacity: below that a split costs more in the merge than it saves


@dataclass(frozen=True)
class Config:
    """A variant. `form`: "one" (fp32 sums, one row), "dot" (queries are the left operand), "swap" (keys are).

    `resident`: programs that one multiprocessor is meant to hold at a time. `last`: the program of a tile that arrives
    last merges the splits; else a second launch does.
    """

    form: Form
    block_m: int
    block_n: int
    warps: int
    stages: int
    resident: int
    last: bool = True

    def __str__(self) -> str:
        merge = "last program merges" if self.last else "second launch merges"
        return f"{self.form} {self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages, {merge}"


def padded(dim: int) -> int:
    """The tile width of a head size: a power of two, 16 at least."""
    return max(16, next_power_of_2(dim))


def choose_config(
    rows: int, dim: int, v_dim: int, dtype: torch.dtype, *, block_m: int | None = None, block_n: int | None = None
) -> Config:
    """`rows`: queries x query heads of one key/value head. ValueError when a block size cannot be used."""
    for name, value, least in (("block_m", block_m, 16), ("block_n", block_n, 16)):
        if value is not None and (value < least or value > 256 or value & (value - 1)):
            raise ValueError(f"{name} is {value}: a power of two from {least} to 256 is needed, or None for our choice")
    width = max(padded(dim), padded(v_dim)) * (2 if dtype == torch.float32 else 1)
    if rows == 1 and block_m is None:
        best = Config("one", 1, max(16, min(64, 4096 // width)), 4, 1, 8)
    elif rows <= 16 or block_m == 16:
        best = Config("dot", 16, max(16, min(64, 8192 // width)), 4, 3, 4)
    else:
        best = Config("dot", min(64, next_power_of_2(rows)), 64 if width <= 128 else 32, 4, 2, 2)
    m, n = block_m or best.block_m, block_n or best.block_n
    return Config(best.form, m, n, best.warps, best.stages, best.resident, best.last)


def choose_splits(tiles: int, capacity: int, block_n: int, slots: int) -> int:
    """The most splits with which all programs of `tiles` are resident at once in `slots` places; at least 1.

    Every split takes an equal share of each row's actual length, so the number holds for all lengths up to capacity.
    """
    most = min(MAX_SPLITS, max(1, ceil_div(capacity, block_n * MIN_BLOCKS_A_SPLIT)))
    return max(1, min(most, slots // max(1, tiles)))
