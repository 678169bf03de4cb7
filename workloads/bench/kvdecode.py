"""Suite `kv-decode`: one decode step over an fp16 cache, as `kernels.bench.dense` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kernels.bench import dense
from kernels.bench.rows import Measured

if TYPE_CHECKING:
    from workloads.bench.suites import Context


def cases(device: torch.device, *, quick: bool = False) -> Sequence[dense.Case]:
    return dense.cases(device, quick=quick)


def measure(case: dense.Case, context: Context) -> Measured:
    with torch.inference_mode():
        return dense.measure(case, context.found, context.device, replays=context.replays, seed=context.seed)
