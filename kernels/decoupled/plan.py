"""How a decode is launched: one pass or two, how many partitions, and the scratch memory, chosen once for a shape.

Nothing here depends on a length: a plan made for a capacity serves every length below it, and a CUDA graph of `run`
may be replayed while the lengths (on the device) change. Imports Triton only when it runs. Called by `api` and by
whoever captures a decode step.

Shape letters: B rows, Hq query heads, Hkv KV heads, S = d_sem, G = d_geo, V = d_v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.dispatch import without
from kernels.decoupled.reference import NullToken
from kernels.device import ceil_div, multiprocessors

BLOCK: Final = 64
RESIDENT: Final = 8
"""Programs (of one warp) for each multiprocessor: two for each of its four schedulers. 10 fit, and are slower."""
MOST: Final = 1024
"""Partitions at most."""


@dataclass(frozen=True)
class Choice:
    """passes: 1 or 2; partitions: of the quantized part in 2 passes (1 in one pass); why: one sentence."""

    passes: int
    partitions: int
    why: str


def choose(
    pairs: int, capacity: int, device: torch.device, *, passes: int | None = None, partitions: int | None = None
) -> Choice:
    """pairs = B * Hkv. Given `passes` and `partitions` are kept; the rest follows from how many programs fit at once.

    ValueError when they contradict each other or are out of range.
    """
    _check(passes, partitions)
    fit = multiprocessors(device) * RESIDENT
    blocks = ceil_div(capacity, BLOCK)
    fill = max(1, min(fit // pairs, blocks, MOST))
    room = f"{pairs} (row, KV head) pairs, room for {fit} programs, {blocks} blocks of {BLOCK} tokens"
    if passes == 1 or (passes is None and partitions is None and fill == 1):
        return Choice(1, 1, f"1 pass ({'asked for' if passes else 'the pairs fill the GPU'}): {room}")
    if partitions is not None:
        return Choice(2, partitions, f"2 passes, {partitions} partitions (asked for): {room}")
    return Choice(2, fill, f"2 passes, {fill} partitions so that one wave fills the GPU: {room}")


class DecoupledPlan:
    """Decodes one token a row for every cache of this shape. Not for two streams at once: the scratch is one.

    q_heads is a multiple of kv_heads; capacity and resid (policy.resid) are the cache's; dtype is that of the queries
    and of the output (fp16, bf16 or fp32). passes 1 or 2 and partitions 0..1024 (of 2 passes) may be forced; partitions
    = 0 is for rows that have no quantized tokens, and gives NaN in a row that has some. `lse` fp32 [B, Hq] holds the
    natural log-sum-exp after a run.
    """

    def __init__(
        self,
        batch: int,
        q_heads: int,
        kv_heads: int,
        d_sem: int,
        d_geo: int,
        d_v: int,
        capacity: int,
        *,
        resid: int,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str,
        passes: int | None = None,
        partitions: int | None = None,
    ) -> None:
        sizes = {"batch": batch, "q_heads": q_heads, "kv_heads": kv_heads, "d_sem": d_sem, "d_geo": d_geo, "d_v": d_v}
        if min(sizes.values()) < 1 or capacity < 1 or resid < 0 or q_heads % kv_heads:
            raise ValueError(
                f"a plan for {sizes}, capacity {capacity}, resid {resid}: sizes must be at least 1, resid at least 0, "
                "and q_heads a multiple of kv_heads"
            )
        self.device = torch.device(device)
        self.dtype = dtype
        self.shapes = ((batch, q_heads, d_sem), (batch, q_heads, d_geo), (batch, q_heads, d_v))
        self.cache_shape = (batch, kv_heads, (d_sem, d_geo, d_v), capacity, resid)
        self.choice = choose(batch * kv_heads, capacity, self.device, passes=passes, partitions=partitions)
        self.lacks = without(self.device)
        rows = batch * q_heads if self.choice.passes == 2 else 0
        total = max(self.choice.partitions, int(resid > 0))  # the tail needs a program also where there is no partition
        self.scratch = (
            torch.empty(rows, total, dtype=torch.float32, device=self.device),
            torch.empty(rows, total, dtype=torch.float32, device=self.device),
            torch.empty(rows, total, d_v, dtype=torch.float32, device=self.device),
        )
        self.lse = torch.empty(batch, q_heads, dtype=torch.float32, device=self.device)

    @classmethod
    def of(
        cls,
        cache: QuantizedCache,
        q_heads: int,
        *,
        dtype: torch.dtype = torch.float16,
        passes: int | None = None,
        partitions: int | None = None,
    ) -> DecoupledPlan:
        """The plan for this cache and `q_heads` query heads."""
        return cls(
            cache.batch,
            q_heads,
            cache.kv_heads,
            *cache.dims,
            cache.capacity,
            resid=cache.policy.resid,
            dtype=dtype,
            device=cache.lengths.device,
            passes=passes,
            partitions=partitions,
        )

    def run(
        self,
        q_sem: Tensor,
        q_geo: Tensor,
        cache: QuantizedCache,
        *,
        null: NullToken | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """q_sem [B,Hq,S], q_geo [B,Hq,G] (gate and scale multiplied in) -> [B,Hq,V] in `dtype`. No wait for the device.

        One launch in one pass, two in two; every one may be captured. `out`, if given, is contiguous and is returned.
        ValueError when shapes, dtypes or devices are not the plan's.
        """
        from kernels.decoupled import triton_decode, triton_reduce

        self._check(q_sem, q_geo, cache, out)
        if out is None:
            out = torch.empty(self.shapes[2], dtype=self.dtype, device=self.device)
        batch, kv_heads, dims = self.cache_shape[:3]
        rows = None if null is None else null.rows(batch, kv_heads, dims)
        passes, partitions = self.choice.passes, self.choice.partitions
        args = (q_sem, q_geo, cache, rows, self.scratch, out, self.lse)
        triton_decode.launch(*args, passes=passes, partitions=partitions)
        if passes == 2:
            triton_reduce.launch(*args, partitions=partitions)
        return out

    def why(self) -> str:
        """What was chosen, and from which numbers; what this GPU lacks."""
        return f"{self.choice.why}{self.lacks and f'; {self.lacks}'}"

    def _check(self, q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, out: Tensor | None) -> None:
        for name, x, shape in zip(("q_sem", "q_geo", "out"), (q_sem, q_geo, out), self.shapes, strict=True):
            if x is not None and (x.shape != shape or x.dtype != self.dtype or x.device != cache.lengths.device):
                raise ValueError(
                    f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; "
                    f"the plan takes {self.dtype} {shape} on {cache.lengths.device}"
                )
        if out is not None and not out.is_contiguous():
            raise ValueError(f"out has strides {out.stride()}; it must be contiguous")
        have = (cache.batch, cache.kv_heads, cache.dims, cache.capacity, cache.policy.resid)
        if have != self.cache_shape:
            raise ValueError(
                f"the plan is for a cache of (batch, kv_heads, dims, capacity, resid) = {self.cache_shape}, not {have}"
            )


def _check(passes: int | None, partitions: int | None) -> None:
    if passes not in (None, 1, 2):
        raise ValueError(f"passes={passes}: it is 1, 2 or None (chosen by how much work there is)")
    if partitions is not None and not 0 <= partitions <= MOST:
        raise ValueError(f"partitions={partitions}: it lies in 0..{MOST}")
    if passes == 1 and partitions not in (None, 1):
        raise ValueError(
            f"passes=1 with partitions={partitions}: one pass has no partitions; leave it out, or passes=2"
        )
