"""What a turn cost: bytes that a token must read, the limit that they set, and the memory that is held.

    bytes a token = every weight once, but of an embedding table that is no head too the one row
                  + the keys and values of the tokens so far, in the formats that they are held in, all layers

Activations, the page tables of the device and what a kernel reads twice are not in it: it is the least that a step can
read. Over the read bandwidth measured on the device it is the least time of a step. Called by `workloads.decode.loop`.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import torch

from kernels.decoupled.policy import VALUE_BYTES, KVCachePolicy
from workloads.models.decoder import Decoder

Memory = dict[str, int]


def weight_bytes(model: Decoder) -> int:
    """Read by one step of one row."""
    every = sum(p.nbytes for p in model.parameters())
    table = model.embed.weight
    return every if model.head.weight is table else every - table.nbytes + table[0].nbytes


def cache_bytes(model: Decoder, policy: KVCachePolicy | None, length: int) -> int:
    """Read by one step of one row over `length` tokens, its own among them."""
    spec, item = model.spec, model.embed.weight.itemsize
    if policy is None:
        return spec.layers * length * spec.kv_heads * 2 * spec.d_head * item
    half = spec.d_head // 2
    tail = min(length, policy.resid)
    stored = (length - tail) * policy.bytes_per_token(spec.kv_heads, half, spec.d_head - half, spec.d_head)
    return spec.layers * (stored + tail * spec.kv_heads * 2 * spec.d_head * VALUE_BYTES)


def bytes_a_token(model: Decoder, policy: KVCachePolicy | None, before: int, made: int, *, cached: bool) -> int:
    """The mean over the `made` steps of a reply that follows `before` tokens; without a cache the weights alone."""
    weights = weight_bytes(model)
    if not cached:
        return weights
    return weights + round(statistics.fmean(cache_bytes(model, policy, before + i + 1) for i in range(made)))


def how_bytes(*, cached: bool) -> str:
    weights = "every weight once (of an embedding table that is no head: one row)"
    if not cached:
        return f"{weights}; keys and values are computed again for every token and not counted"
    return f"{weights} + keys and values of all tokens so far as they are held; mean over the reply, computed"


def memory(device: torch.device, weights: int, cache: int) -> Memory:
    """Bytes held now: by this process in RAM, by anybody on the device, by torch, and in the tensors that count."""
    held = {"process_rss": resident_bytes(), "weights": weights, "cache": cache}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held |= {
            "device_used": total - free, "device_total": total,
            "torch_allocated": torch.cuda.memory_allocated(device),
            "torch_reserved": torch.cuda.memory_reserved(device),
            "torch_peak": torch.cuda.max_memory_allocated(device),
        }  # fmt: skip
    return held


def forget_peak(device: torch.device) -> None:
    """From now on `torch_peak` speaks of what comes, and memory that was needed once is given back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def resident_bytes() -> int:
    """Of this process, as the kernel counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensor_bytes(model: Decoder) -> int:
    """What all parameters hold."""
    return sum(p.nbytes for p in model.parameters())
