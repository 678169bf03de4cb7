"""From tensors to a launch of the Triton kernels: pointers, strides, constants, scratch memory.

Checks nothing (its callers have) and never waits for the device. Called by `plan.py`, `api.py` and `tune.py`.

Letters: B rows, H query heads, K key/value heads, S queries a row, N slots, D and E sizes of a key and a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.device import ceil_div, interpreted, next_power_of_2
from kernels.kv_decode.config import Config, padded

COMBINE_TILE = 2048  # fp32 values of partial outputs that the merge holds in one step

ONE_BY_ONE = 512  # weights that are added one by one, at most: below 2^-24 each is lost beside a 1, 3e-5 in all
WHOLE = 128  # elements of a head that the tensor cores sum in one go; a larger head is summed by halves of it


@dataclass(frozen=True)
class Scratch:
    """Partials fp32 [tiles, splits, block_m, E] and [tiles, splits, 2, block_m]; `overflow` int32 [4] is sticky."""

    part_o: Tensor
    part_ml: Tensor
    overflow: Tensor


def tiles_of(config: Config, batch: int, kv_heads: int, rows: int) -> int:
    return batch * kv_heads * ceil_div(rows, config.block_m)


def make_scratch(
    config: Config, splits: int, tiles: int, v_dim: int, device: torch.device, overflow: Tensor | None = None
) -> Scratch:
    """Partials are left unwritten; empty when there is nothing to merge."""
    n = tiles * splits if splits > 1 else 0
    return Scratch(
        torch.empty(n * config.block_m * padded(v_dim), dtype=torch.float32, device=device),
        torch.empty(n * config.block_m * 2, dtype=torch.float32, device=device),
        torch.zeros(4, dtype=torch.int32, device=device) if overflow is None else overflow,
    )


@dataclass(frozen=True)
class Call:
    """One attention over k, v [B, K, N, .]: q [B, H, S, D] at the end of each row, `new` (k, v) [B, K, S, .] or None.

    `lens`: int32 or int64 [B] on the device, keys in k, v (None: N). `write`: new tokens go to slots lens[b]...
    """

    q_BHSD: Tensor
    k_BKND: Tensor
    v_BKNE: Tensor
    new: tuple[Tensor, Tensor] | None
    lens: Tensor | None
    out_BHSE: Tensor
    lse_BHS: Tensor | None
    scale: float
    causal: bool
    write: bool


def arguments(call: Call, config: Config, splits: int, scratch: Scratch) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of `split_kernel`, without the grid."""
    q, k, v, out = call.q_BHSD, call.k_BKND, call.v_BKNE, call.out_BHSE
    kn, vn = call.new if call.new is not None else (q, q)
    kv_heads = k.shape[1]
    lens = q if call.lens is None else call.lens
    lse = q if call.lse_BHS is None else call.lse_BHS
    args: list[Any] = [q, k, v, kn, vn, out, lse, scratch.part_o, scratch.part_ml, lens, scratch.overflow]
    unit = 8 if aligned(call) else 1
    if unit == 1:
        config = config.unaligned(max(padded(q.shape[3]), padded(v.shape[3])))
    args += q.stride()
    for tensor in (k, v, kn, vn):
        args += [*(stride // unit for stride in tensor.stride()[:3]), tensor.stride(3)]
    args += out.stride()
    args += [kv_heads, q.shape[2], k.shape[2], exponent(call)]
    long = config.form == "one" and k.shape[2] > ONE_BY_ONE * splits * config.block_n
    # Of a long launch overlapping saves a thousandth, and two programs may share a multiprocessor for all of it.
    pdl = 0 if interpreted() or long else config.pdl
    new = 0 if call.new is None else 1 if q.shape[2] == 1 else 2
    consts = {
        **_shared(call, config, splits),
        "D": q.shape[3],
        "BLOCK_N": config.block_n,
        "BLOCK_D": padded(q.shape[3]),
        "PIECE": padded(q.shape[3]) if padded(q.shape[3]) <= WHOLE else WHOLE // 2,
        "STAGES": config.stages,
        "LONG": long,
        "ONE": config.form == "one",
        "CAUSAL": call.causal,
        "HAS_LENS": call.lens is not None,
        "NEW": new,
        "WRITE": call.write,
        "UNIT": unit,
        "NEGATE": call.scale < 0,
        "PDL_IN": pdl == 2,
        "PREFETCH": config.prefetch and unit == 8 and not interpreted() and k.shape[2] > 0,
        "PDL_OUT": pdl > 0,
    }
    options = {"num_warps": config.warps, "num_stages": config.stages, "launch_pdl": pdl == 2}
    return args, {**consts, **options}


def aligned(call: Call) -> bool:
    """Whether keys and values can be read 16 bytes at a time."""
    tensors = (call.k_BKND, call.v_BKNE, *(call.new or ()))
    return all(
        not any(stride % 8 for stride in t.stride()[:3]) and t.stride(3) == 1 and t.data_ptr() % 16 == 0
        for t in tensors
        if t.numel()
    )


def exponent(call: Call) -> float:
    """The factor of a score in the exponent of 2, positive. 0 becomes 1e-30: every weight is 1, and -inf stays."""
    return max(abs(call.scale) * math.log2(math.e), 1e-30)


def _shared(call: Call, config: Config, splits: int) -> dict[str, Any]:
    fp16 = call.v_BKNE.dtype == torch.float16
    return {
        "G": call.q_BHSD.shape[1] // call.k_BKND.shape[1],
        "DV": call.v_BKNE.shape[3],
        "BLOCK_DV": padded(call.v_BKNE.shape[3]),
        "HAS_LSE": call.lse_BHS is not None,
        "BLOCK_M": config.block_m,
        "SPLITS": splits,
        "SHIFT": 15.0 if fp16 and config.form != "one" else 0.0,
        "WIDE": interpreted() and call.q_BHSD.dtype == torch.bfloat16,
    }


def launch(call: Call, config: Config, splits: int, scratch: Scratch) -> None:
    """One launch, or two when there are splits to merge."""
    from kernels.kv_decode.triton_merge import combine_kernel
    from kernels.kv_decode.triton_split import split_kernel

    batch, heads, queries, _ = call.q_BHSD.shape
    kv_heads = call.k_BKND.shape[1]
    rows = heads // kv_heads * queries
    m_tiles = ceil_div(rows, config.block_m)
    args, consts = arguments(call, config, splits, scratch)
    split_kernel[(batch * kv_heads, m_tiles, splits)](*args, **consts)
    if splits == 1:
        return
    at_once = 1 if rows <= 16 else 16
    merge = {
        "SPLITS_POW2": next_power_of_2(splits),
        "ROWS": at_once,
        "CHUNK": max(
            1,
            min(next_power_of_2(splits), COMBINE_TILE // (at_once * padded(call.v_BKNE.shape[3]))),
        ),
        "PDL": config.pdl > 0 and not interpreted(),
    }
    lse = call.q_BHSD if call.lse_BHS is None else call.lse_BHS
    combine_kernel[(batch * kv_heads, m_tiles, ceil_div(min(config.block_m, rows), at_once))](
        scratch.part_o, scratch.part_ml, call.out_BHSE, lse, exponent(call), *call.out_BHSE.stride(), kv_heads,
        queries, m_tiles,
        **_shared(call, config, splits), **merge, num_warps=1, launch_pdl=merge["PDL"],
    )  # fmt: skip
