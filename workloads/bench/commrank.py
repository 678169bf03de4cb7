"""`python -m workloads.bench.commrank ORDER RANK`: one of the processes between which suite `comm` measures.

Times every size between barriers; rank 0 prints a JSON line a size with the slowest rank's times. It dies with the
process that started it. Started by `workloads.bench.comm` alone; torch is imported behind that promise.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1
REPEATS = 11
MEET_S = 60.0
SHORT_BYTES = 1 << 20


@dataclass(frozen=True)
class Order:
    backend: str
    ranks: int
    sizes: tuple[int, ...]
    folder: str  # of the store in which they meet
    parent: int

    def as_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Sample:
    """us: microseconds of one all-reduce, of each repeat, by the slowest rank; count: of them in a repeat."""

    us: Sequence[float]
    count: int
    right: bool


def main(argv: Sequence[str]) -> int:
    told: dict[str, Any] = json.loads(argv[0])
    order, rank = Order(**{**told, "sizes": tuple(told["sizes"])}), int(argv[1])
    _die_with(order.parent)
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if order.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        order.backend,
        init_method=f"file://{order.folder}/store",
        rank=rank,
        world_size=order.ranks,
        timeout=timedelta(seconds=MEET_S),
        device_id=device if device.type == "cuda" else None,
    )
    for size in order.sizes:
        sample = _measure(size, order.ranks, rank, device)
        if rank == 0:
            print(json.dumps({"bytes": size, **asdict(sample)}), flush=True)
    dist.destroy_process_group()
    return 0


def _die_with(parent: int) -> None:
    """SIGKILL when the process that started this one ends, even by kill -9."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def _measure(size: int, ranks: int, rank: int, device: torch.device) -> Sample:
    import torch
    import torch.distributed as dist

    x = torch.full((size // 4,), rank + 1.0, device=device)
    dist.all_reduce(x)
    right = torch.tensor(float((x == ranks * (ranks + 1) / 2).all()), device=device)
    dist.all_reduce(right, op=dist.ReduceOp.MIN)
    count = 20 if size <= SHORT_BYTES else 5
    clock = _events if device.type == "cuda" else _wall
    samples = []
    for _ in range(REPEATS + 1):
        x.fill_(1e-3)  # grows by `ranks` each time: finite for 20 of them
        dist.barrier()
        samples.append(clock(lambda: [dist.all_reduce(x) for _ in range(count)]) / count)
    slowest = torch.tensor(samples[1:], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return Sample(slowest.tolist(), count, bool(right))


def _wall(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return 1e6 * (time.perf_counter() - began)


def _events(do: Callable[[], object]) -> float:
    import torch

    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    do()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
