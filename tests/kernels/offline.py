"""`python -m tests.kernels.offline SM SHARED_KIB`: compile what both decode families would launch on another GPU.

Without that GPU: Triton's own compiler and ptxas build the very variants that `launch` asks for, and nothing is run.
Prints a JSON line for each: kernel, bytes of shared memory that a program takes. Called by `test_older_gpus.py`, in a
process of its own, since tests/kernels interpret their kernels.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kernels.decoupled import KVCachePolicy, QuantizedCache
from kernels.decoupled.plan import DecoupledPlan
from kernels.decoupled.triton_append import append_step
from kernels.kv_decode.config import choose_config, choose_splits
from kernels.kv_decode.launch import Call, launch, make_scratch, tiles_of


class Absent:
    """A driver that names its GPU and has none."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def dense(heads: tuple[int, int], dim: int, queries: int, shared_bytes: int) -> None:
    """One step over 4096 keys a row: as `DecodePlan` launches it where there is no programmatic dependent launch."""
    h, k_heads = heads
    q = torch.zeros(2, h, queries, dim, dtype=torch.float16)
    new = torch.zeros(2, k_heads, queries, dim, dtype=torch.float16)
    cache = torch.zeros(2, k_heads, 4096, dim, dtype=torch.float16)
    rows = h // k_heads * queries
    config = choose_config(rows, dim, dim, q.dtype, 4096, shared_bytes=shared_bytes, pdl=0)
    tiles = tiles_of(config, 2, k_heads, rows)
    splits = choose_splits(tiles, 4096, config.block_n, 64)
    scratch = make_scratch(config, splits, tiles, dim, q.device)
    lens = torch.zeros(2, dtype=torch.int32)
    call = Call(q, cache, cache.clone(), (new, new.clone()), lens, torch.zeros_like(q), None, 0.1, True, True)
    launch(call, config, splits, scratch)


def quantized(policy: str, passes: int) -> None:
    cache = QuantizedCache(2, 512, 2, 32, 32, 64, KVCachePolicy.parse(policy), "cpu")
    q = torch.zeros(2, 8, 32, dtype=torch.float16)
    DecoupledPlan.of(cache, 8, passes=passes).run(q, q.clone(), cache)
    append_step(cache, *(torch.zeros(2, 2, 1, d, dtype=torch.float16) for d in cache.dims))


def main(capability: int, shared_bytes: int) -> None:
    run = JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> Any:
        made = run(self, *args, grid=grid, warmup=True, **more)
        print(json.dumps({"kernel": self.fn.__name__, "shared_bytes": made.metadata.shared}), flush=True)
        return made

    JITFunction.run = compiled
    driver.set_active(Absent(capability))
    for heads, dim, queries in (((4, 4), 64, 1), ((8, 2), 128, 1), ((8, 2), 128, 40), ((2, 2), 256, 40)):
        dense(heads, dim, queries, shared_bytes)
    quantized("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=16", 2)
    quantized("ksem=fp16,kgeo=fp16,v=fp16,resid=0", 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) << 10)
