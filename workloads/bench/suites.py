"""What a suite is, and which there are: a module with `cases` and `measure`, imported when it is asked for.

    def cases(device: torch.device, *, quick: bool) -> Sequence[Case]
    def measure(case: Case, context: Context) -> Measured

`cases` is cheap and always the same for a device; none of them where the suite cannot be measured at all. `measure`
checks its answer before it times it: verdict "ok", "wrong" (then without a time) or "failed". What it raises becomes a
row with verdict "failed". Called by `workloads.bench.matrix`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch

from kernels.bench.probe import Bandwidth
from kernels.bench.rows import Measured
from workloads.judging.book import Key, Row

MODULES: Mapping[str, str] = {
    "bandwidth": "workloads.bench.memory",
    "kv-decode": "workloads.bench.kvdecode",
    "decoupled": "workloads.bench.decoupled",
    "device": "workloads.bench.gpuprobe",
    "train-step": "workloads.bench.trainstep",
    "comm": "workloads.bench.comm",
}
"""By the names in the job file, in their order."""


class Case(Protocol):
    @property
    def name(self) -> str:
        """Unique within the suite, and the same in every run: rows of two runs are compared by it."""
        ...


@dataclass
class Context:
    """What a case is measured with. `rows`: those of this run so far, of an earlier attempt too; `kept`: a suite's own
    notes from one case to the next, empty in a new process."""

    device: torch.device
    quick: bool
    seed: int
    found: Bandwidth
    rows: Mapping[Key, Row] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def replays(self) -> int:
        return 2 if self.device.type == "cpu" else 7 if self.quick else 15

    def row(self, suite: str, case: str) -> Row | None:
        """The row of a case that was right; None when there is none."""
        row = self.rows.get((suite, case))
        return row if row is not None and row.get("verdict") == "ok" else None


class Suite(Protocol):
    def cases(self, device: torch.device, *, quick: bool) -> Sequence[Case]: ...

    def measure(self, case: Any, context: Context) -> Measured: ...


def suite_of(name: str) -> Suite:
    """KeyError for a name that is in no job."""
    return cast("Suite", importlib.import_module(MODULES[name]))


def cases_of(names: Sequence[str], device: torch.device, *, quick: bool) -> Iterator[tuple[str, Case]]:
    """(suite, case), suite by suite."""
    for name in names:
        for case in suite_of(name).cases(device, quick=quick):
            yield name, case
