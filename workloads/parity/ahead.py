"""Processes that run the coming cells first and throw away what they find, so that the rank meets compiled kernels.

On a GPU a cell is mostly compiling, which takes one core. The rank still judges every cell itself, in order: a worker
that fails or dies costs time, never a verdict. Called by `workloads.parity.loop`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing import get_context
from types import TracebackType
from typing import Self

from kernels import parity

JOBS = 6
"""At most. Each holds a CUDA context of about 0.5 GiB."""
END_S = 5.0


def jobs_here(device: str, cells: int) -> int:
    """None in the interpreter, which compiles nothing; half of the cores, for the rank is not alone on its pod."""
    return min(JOBS, len(os.sched_getaffinity(0)) // 2, cells - 1) if device == "cuda" else 0


class Ahead:
    """`with Ahead(...)`: worker k of n runs the cells k, k + n, ... Killed by `stop` or at the end of the block."""

    def __init__(self, cells: Sequence[parity.Cell], device: str, seed: int, jobs: int) -> None:
        spawn = get_context("spawn")  # a forked child cannot use CUDA
        self.workers = [
            spawn.Process(target=_run, args=(cells[k::jobs], device, seed), daemon=True, name=f"ahead-{k}")
            for k in range(max(0, jobs))
        ]

    def __enter__(self) -> Self:
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> bool:
        """Whether there was one to end: what it held of the device is free after this."""
        ended = [worker for worker in self.workers if worker.is_alive()]
        for worker in ended:
            worker.kill()
        for worker in self.workers:
            worker.join(END_S)
        return bool(ended)


def _run(cells: Sequence[parity.Cell], device: str, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    for cell in cells:
        parity.run_cell(cell, device, seed)
        if device == "cuda":
            torch.cuda.empty_cache()  # the rank may need it
