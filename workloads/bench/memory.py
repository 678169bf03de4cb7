"""Suite `bandwidth`: what the run's own probe found, as rows; every limit of the run comes from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels.bench import bandwidth
from kernels.bench.rows import Measured

if TYPE_CHECKING:
    from workloads.bench.suites import Context


@dataclass(frozen=True)
class Case:
    name: str


def cases(device: torch.device, *, quick: bool = False) -> Sequence[Case]:
    del quick
    return [Case(name) for name in bandwidth.names(device)]


def measure(case: Case, context: Context) -> Measured:
    """Nothing is measured here: the probe ran first."""
    return next(m for m in bandwidth.measured(context.found) if m.case == case.name)
