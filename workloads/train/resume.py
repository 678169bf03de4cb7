"""Where to start: the newest checkpoint that verifies and fits the job, or step 0.

Rank 0 looks and decides; all ranks load the same. A damaged checkpoint is named and never used. When checkpoints are
there and none verifies, the run is refused: starting over is a person's decision. Called by the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.contract.errors import IntegrityError, SpecError
from workloads.contract.files import read_json
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import TRAINER_FILE, Checkpointer
from workloads.runtime.manifest import newest_verified
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import remove_staged
from workloads.train.books import cut_after
from workloads.train.config import refuse_changes

TRAINER_VERSION = 1


@dataclass(frozen=True)
class Position:
    step: int = 0
    samples: int = 0


def trainer_state(position: Position, bound: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """What a checkpoint holds beside tensors and generators."""
    return {
        "v": TRAINER_VERSION, "step": position.step, "samples": position.samples,
        "config": dict(bound), "corpus": fingerprint,
    }  # fmt: skip


def choose(env: RankEnv, agreement: Agreement) -> Path | None:
    """The checkpoint to start from; leftovers of unfinished saves are removed. IntegrityError: all are damaged."""
    found: tuple[str | None, list[tuple[str, str]]] | None = None
    if env.rank == 0:
        remove_staged(env.run)
        path, rejected = newest_verified(env.run, run_id=env.run_id)
        found = (path.name if path else None, rejected)
    name, rejected = agreement.from_rank0(found)
    for bad, why in rejected:
        print(f"warning: checkpoint {bad} is not used: {why}", flush=True)
    if name is None and rejected:
        raise IntegrityError(
            "E-TRAIN-005",
            f"none of {len(rejected)} checkpoints verifies; the newest: {rejected[0][1]}",
            where=str(env.run.checkpoints),
            fix="mend them from a copy, or move them away to start at step 0",
        )
    return env.run.checkpoints / name if name else None


def resume(
    env: RankEnv, agreement: Agreement, checkpointer: Checkpointer, bound: Mapping[str, Any], fingerprint: str
) -> Position:
    """Load the chosen checkpoint. SpecError when job or corpus are others than those that wrote it."""
    path = choose(env, agreement)
    position = Position()
    if path is not None:
        saved = read_json(path / TRAINER_FILE)
        if saved.get("v") != TRAINER_VERSION:
            raise SpecError("E-TRAIN-006", f"{path.name} has trainer state {saved.get('v')!r}, this orch reads 1")
        refuse_changes(saved["config"], bound, path.name)
        if saved["corpus"] != fingerprint:
            raise SpecError(
                "E-TRAIN-007",
                f"data.source: the corpus is not the one that {path.name} was trained on",
                value=fingerprint[:16],
                expected=saved["corpus"][:16],
                fix="bring the old text back, or launch a new run",
            )
        checkpointer.load(path)
        position = Position(saved["step"], saved["samples"])
        print(f"resume: step {position.step} from {path.name}", flush=True)
    if env.rank == 0:
        cut_after(env, position.step)
    return position
