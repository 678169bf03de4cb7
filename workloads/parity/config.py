"""What this rank judges: the job in run.json, and where its code comes from. No torch here.

Refusals are `SpecError`s that `workloads.parity.__main__` turns into exit 77: a restart cannot help.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.contract.config.job import ParitySpec
from workloads.judging.origin import read_origin
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class ParityConfig:
    asked: ParitySpec
    commit: str  # of the code that is judged; the tree's hash where it came from no repository
    dirty: bool
    command: str  # what a person typed
    pod: str


def load(env: RankEnv) -> ParityConfig:
    """The job of the run directory. SpecError when it is missing or wrong."""
    found = read_origin(env, "E-PARITY-002")
    return ParityConfig(found.job.parity, found.commit, found.dirty, found.command, found.pod)
