"""What this rank measures: the job in run.json, and where its code comes from. No torch here.

Refusals are `SpecError`s that `workloads.bench.__main__` turns into exit 77: a restart cannot help.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.contract.config.job import BenchSpec
from workloads.judging.origin import read_origin
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class BenchConfig:
    asked: BenchSpec
    commit: str  # of the code that is measured; the tree's hash where it came from no repository
    dirty: bool
    command: str  # what a person typed
    pod: str


def load(env: RankEnv) -> BenchConfig:
    """The job of the run directory. SpecError when it is missing or wrong."""
    found = read_origin(env, "E-BENCH-002")
    return BenchConfig(found.job.bench, found.commit, found.dirty, found.command, found.pod)
