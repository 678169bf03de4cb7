"""Which variant of the kernel a shape gets, and into how many splits: pure functions over what was measured.

Never touches a device. Called by `plan.py`; `tune.py` measures variants. On an H200 (us; fp16; B rows, query/key heads,
D, keys), each row against the next best that was tried:

    16, 8/8, 64, 2048    one 1x128, 4 stages, 1 split        18.8   dot 19.9; 2 splits 20.5; 2 stages 22
    16, 8/8, 64, 8192    the same                            63.2   dot 66.8; 3 stages 64.2
    1, 32/8, 128, 4096   dot 16x64, 3 stages, 16 splits       9.4   16x128 9.9; 32 splits 10.9
    1, 32/8, 128, 32768  dot 16x128, 3 stages, 16 splits     36.5   16x64 37.1; 32 splits 38.2
    16, 64/4, 128, 65536 the same, 2 splits                  479    4 splits 484

One program a multiprocessor with a deep pipeline beat several with shallow ones everywhere. Tried and dropped: keys as
the left operand (ties or loses), merging by the program that arrives last (2.5 us slower than a second launch with
programmatic dependent launch, which is worth 1.3 us with splits and 0.7 us without).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from kernels.device import ceil_div, next_power_of_2

Form = Literal["one", "dot"]
MAX_DIM = 256
MAX_SPLITS = 128
MIN_BLOCKS_A_SPLIT = 2  # of the capacity: below that a split costs more in the merge than it saves
SHORT = 512  # keys a split: below that, smaller blocks start sooner
SHARED_BYTES = 227 << 10  # of a Hopper multiprocessor
OTHER_SHARED_BYTES = 24 << 10  # queries, probabilities and reductions beside the pipeline's buffers


@dataclass(frozen=True)
class Config:
    """A variant. `form`: "one" (fp32 sums, a single row of queries) or "dot" (tensor cores, `block_m` rows).

    `stages` - 1 blocks of `block_n` keys and values are in flight. `pdl` (programmatic dependent launch, Hopper and
    later): 0 none, 1 the merge starts while the splits end, 2 also the splits while the launch before them ends.
    `prefetch`: the first block is asked for before the length is known.
    """

    form: Form
    block_m: int
    block_n: int
    warps: int
    stages: int
    pdl: int = 2
    prefetch: bool = True

    def unaligned(self, width: int) -> Config:
        """The same for strides that allow no loads of 16 bytes: an address each is kept for every element, so blocks
        are small (larger ones spilled 10 KB a thread, and one compiled wrongly), and nothing can be in flight."""
        return replace(self, block_n=max(16, min(self.block_n, 2048 // width)), stages=1)

    def __str__(self) -> str:
        return f"{self.form} {self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages, pdl {self.pdl}"


def padded(dim: int) -> int:
    """The tile width of a head size: a power of two, 16 at least."""
    return max(16, next_power_of_2(dim))


def choose_config(
    rows: int,
    dim: int,
    v_dim: int,
    dtype: torch.dtype,
    share: int,
    *,
    block_m: int | None = None,
    block_n: int | None = None,
    shared_bytes: int = SHARED_BYTES,
    pdl: int = 2,
) -> Config:
    """`rows`: queries x query heads of one key/value head; `share`: keys that a program will see at most.

    ValueError when a block size cannot be used, or does not fit into `shared_bytes` of a multiprocessor.
    """
    for name, value in (("block_m", block_m), ("block_n", block_n)):
        if value is not None and (value < 16 or value > 256 or value & (value - 1)):
            raise ValueError(f"{name} is {value}: a power of two from 16 to 256 is needed, or None for our choice")
    width = max(padded(dim), padded(v_dim))
    small = share <= SHORT and width > 64
    form: Form = "dot"
    if rows == 1 and block_m is None and dim % 8 == 0 and v_dim % 8 == 0:  # "one" needs loads of 16 bytes
        form, m, n, warps, stages = "one", 1, max(16, min(128, 8192 // width)), 4, 4
    elif rows <= 16 or block_m == 16:
        m, n, warps, stages = 16, (8192 if small else 16384) // width, 4, 4 if width <= 64 else 3
        n = min(128, n)
    else:
        m, n, warps, stages = min(64, next_power_of_2(rows)), 64 if width <= 128 else 32, 4 if width <= 128 else 8, 2
    m, n = block_m or m, block_n or n
    warps = 8 if m > 64 else warps
    bytes_a_block = (padded(dim) + padded(v_dim)) * dtype.itemsize
    room = shared_bytes - OTHER_SHARED_BYTES - m * padded(dim) * dtype.itemsize
    if block_n is None:
        while n > 16 and n * bytes_a_block > room:
            n //= 2
    stages = max(2, min(stages, 1 + room // (n * bytes_a_block)))
    if n * bytes_a_block > room:
        raise ValueError(
            f"block_m {m}, block_n {n} with head sizes {dim} and {v_dim} need "
            f"{n * bytes_a_block + shared_bytes - room} bytes of shared memory, and there are {shared_bytes}: "
            "smaller blocks are needed, or None for our choice"
        )
    return Config(form, m, n, warps, stages, pdl=pdl, prefetch=m <= 16 and dtype.itemsize == 2)


def choose_splits(tiles: int, capacity: int, block_n: int, slots: int) -> int:
    """The most splits with which each program of `tiles` has one of `slots` multiprocessors to itself; at least 1.

    Splits take blocks of each row's actual length in turn, so the number holds for all lengths up to capacity.
    """
    most = min(MAX_SPLITS, max(1, ceil_div(capacity, block_n * MIN_BLOCKS_A_SPLIT)))
    return max(1, min(most, slots // max(1, tiles)))
