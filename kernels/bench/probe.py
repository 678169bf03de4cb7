"""What this machine's memory can do, measured first in every run: pure read, copy, an empty launch.

`limit_us` of every case is its bytes over the read bandwidth found here, never over a datasheet's. Called by
`kernels.bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bench.timing import Launch, Timing, graph_time, rotation

MIB = 1 << 20
READ_MIB = (4, 16, 64, 256, 4096)  # the last one is the ceiling; the others: what a perfect short read would take
CPU_READ_MIB = (1, 4)
CONFIGS = ((4096, 4, 4), (2048, 4, 4), (4096, 1, 4), (8192, 2, 8), (1024, 2, 4))  # block, iterations, warps


@dataclass(frozen=True)
class Bandwidth:
    """read_tbs: best pure read, 1e12 B/s; copy_tbs: bytes read and written; empty_us: an empty launch inside a graph.

    reads: (MiB, microseconds) of a pure read of that size out of memory, launch included; l2_bytes: of the device.
    """

    read_tbs: float
    copy_tbs: float
    empty_us: float
    reads: tuple[tuple[int, Timing], ...]
    copy: Timing
    empty: Timing
    l2_bytes: int

    def limit_us(self, read_bytes: int) -> float:
        """Microseconds to read that many bytes at the measured bandwidth."""
        return read_bytes / self.read_tbs / 1e6


def l2_size(device: torch.device) -> int:
    """Bytes of L2 of a CUDA device; 0 on the CPU, where two copies of an input are enough."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def measure(device: torch.device, *, quick: bool = False) -> Bandwidth:
    """The bandwidth of `device`, about a second on a GPU. RuntimeError when the read kernel adds up wrong."""
    cuda = device.type == "cuda"
    sizes = READ_MIB if cuda else CPU_READ_MIB
    pool = torch.randint(-(1 << 31), (1 << 31) - 1, (sizes[-1] * MIB // 4,), dtype=torch.int32, device=device)
    reader = _triton_reader(device) if cuda else _torch_reader
    l2 = l2_size(device)
    replays = 7 if quick else 15
    reads = tuple((mib, _read_time(pool, mib * MIB, reader, l2, device, replays)) for mib in sizes)
    half = pool.numel() // 2
    copy = graph_time(lambda _: lambda: pool[:half].copy_(pool[half:]), 1, device=device, replays=replays)
    empty = graph_time(lambda _: _empty(pool), 1, device=device, replays=replays)
    read_tbs = max(mib * MIB / t.us / 1e6 for mib, t in reads[-2:])
    return Bandwidth(read_tbs, pool.numel() * 4 / copy.us / 1e6, empty.us, reads, copy, empty, l2)


Reader = Callable[[Tensor, tuple[int, int, int]], Launch]


def _read_time(pool: Tensor, size: int, reader: Reader, l2: int, device: torch.device, replays: int) -> Timing:
    """Best of the configurations, over pieces of `pool` read in turn."""
    copies = rotation(size, l2, most_bytes=pool.numel() * 4)
    pieces = [pool[i * size // 4 : (i + 1) * size // 4] for i in range(copies)]
    configs = CONFIGS if device.type == "cuda" else CONFIGS[:1]

    def timed(config: tuple[int, int, int]) -> Timing:
        return graph_time(lambda i: reader(pieces[i], config), copies, device=device, replays=replays)

    return min((timed(c) for c in configs), key=lambda t: t.us)


def _triton_reader(device: torch.device) -> Reader:
    from kernels.bench import triton_probe

    if not triton_probe.sums_right(device):
        raise RuntimeError("the read kernel does not add up what it reads; no bandwidth can be told")

    def reader(x: Tensor, config: tuple[int, int, int]) -> Launch:
        block, iters, warps = config
        out = torch.empty(triton_probe.programs(x.numel(), block, iters), dtype=torch.int32, device=x.device)
        return lambda: triton_probe.read(x, out, block=block, iters=iters, warps=warps)

    return reader


def _torch_reader(x: Tensor, config: tuple[int, int, int]) -> Launch:
    del config
    return lambda: x.sum()


def _empty(x: Tensor) -> Launch:
    if not x.is_cuda:
        return lambda: None
    from kernels.bench import triton_probe

    return lambda: triton_probe.empty(x)
