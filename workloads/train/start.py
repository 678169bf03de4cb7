"""A run that begins with another run's checkpoint: `orch launch --resume`, as run.json tells it.

Nothing of that checkpoint is loaded before every byte of it verified; it is never changed or removed. Once the run has
a checkpoint of its own it goes on from that. Called by the trainer's resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workloads.contract.errors import IntegrityError
from workloads.contract.files import try_read_json
from workloads.contract.manifest import verify
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class Start:
    """`allow`: names as in `workloads.contract.allowed`."""

    checkpoint: Path
    allow: frozenset[str]


def start_of(env: RankEnv) -> Start | None:
    """None for a run that begins at step 0."""
    told = (try_read_json(env.run.run_json) or {}).get("start")
    if not isinstance(told, dict) or not isinstance(told.get("checkpoint"), str):
        return None
    allow = told.get("allow")
    names = frozenset(str(name) for name in allow) if isinstance(allow, list) else frozenset()
    return Start(Path(told["checkpoint"]), names)


def verified(checkpointer: Checkpointer, start: Start) -> Path:
    """The checkpoint, looked at by rank 0 for all. IntegrityError on every rank when it must not be used."""
    own = checkpointer.env.rank == 0
    problems = checkpointer.agreement.from_rank0(verify(start.checkpoint) if own else None)
    if problems:
        raise IntegrityError(
            "E-TRAIN-010", f"the run begins with a checkpoint that must not be used: {problems[0]}",
            where=str(start.checkpoint), expected="one that verifies",
            fix="mend it from a copy, or launch a new run from another one",
        )  # fmt: skip
    return start.checkpoint
