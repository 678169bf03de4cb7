"""Two Triton kernels that know nothing of attention: a pure read of memory, and one that does nothing.

Their times are the ceilings that every other kernel is held against. Called by `probe` alone, which imports this file
only on a GPU (or under the interpreter).
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read_kernel(x, out, size, BLOCK: tl.constexpr, ITERS: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], dtype=tl.int32)
    for i in tl.static_range(ITERS):
        at = (pid * ITERS + i) * BLOCK + offs
        acc += tl.load(x + at, mask=at < size, other=0)
    tl.store(out + pid, tl.sum(acc, axis=0))


@triton.jit
def _empty_kernel(x):
    pass


def read(x: Tensor, out: Tensor, *, block: int, iters: int, warps: int) -> None:
    """Adds up int32 x [n] (n a multiple of `block`), one sum a program into int32 out [>= programs(n)]: reads all."""
    _read_kernel[(programs(x.numel(), block, iters),)](x, out, x.numel(), BLOCK=block, ITERS=iters, num_warps=warps)


def programs(numel: int, block: int, iters: int) -> int:
    """Programs that `read` launches over `numel` elements."""
    return -(-numel // (block * iters))


def empty(x: Tensor) -> None:
    """One program that does nothing."""
    _empty_kernel[(1,)](x, num_warps=1)


def sums_right(device: torch.device) -> bool:
    """Whether `read` reads every element once, on a buffer that ends inside a program's share."""
    x = torch.arange(7 * 256, dtype=torch.int32, device=device)
    out = torch.zeros(4, dtype=torch.int32, device=device)
    read(x, out, block=256, iters=2, warps=4)
    return int(out.sum()) == int(x.sum())
