"""Where to start: the newest checkpoint that verifies and fits the job; that of another run if asked; or step 0.

Which one of its own is decided by `workloads.runtime.newest`. Called by the trainer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.contract.allowed import CORPUS, is_allowed
from workloads.contract.config.bound import BoundChanges, refuse_changes
from workloads.contract.errors import SpecError
from workloads.contract.files import read_json
from workloads.contract.manifest import read_manifest
from workloads.contract.rundir import TRAINER_FILE
from workloads.data.stream import FeedState
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.newest import choose
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.shards import read_shards
from workloads.train.books import cut_after
from workloads.train.start import Start, gone, let_go, start_of, verified

TRAINER_VERSION = 1


@dataclass(frozen=True)
class Position:
    step: int = 0
    samples: int = 0
    shards: Mapping[int, Any] = field(default_factory=dict)

    @property
    def feed(self) -> FeedState:
        return FeedState(self.samples, self.shards)


def trainer_state(position: Position, bound: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """What a checkpoint holds beside tensors and generators."""
    return {
        "v": TRAINER_VERSION, "step": position.step, "samples": position.samples,
        "config": dict(bound), "corpus": fingerprint,
    }  # fmt: skip


def resume(checkpointer: Checkpointer, bound: Mapping[str, Any], fingerprint: str) -> Position:
    """Load the chosen checkpoint. SpecError when job or corpus are others than those that wrote it, and must not be."""
    env, path = checkpointer.env, choose(checkpointer)
    position = Position()
    start = start_of(env)
    if path is None and start is not None:
        path = verified(checkpointer, start)
    elif start is not None and env.rank == 0:
        let_go(env)
    if path is not None:
        position = _load(checkpointer, path, bound, fingerprint, start)
        print(f"resume: step {position.step} from {path.name}", flush=True)
    elif env.attempt > 1:
        print("resume: step 0, for this run has no checkpoint yet", flush=True)
    if env.rank == 0:
        cut_after(env, position.step)
    return position


def _load(
    checkpointer: Checkpointer, path: Path, bound: Mapping[str, Any], fingerprint: str, start: Start | None
) -> Position:
    env, saved = checkpointer.env, read_json(path / TRAINER_FILE)
    if saved.get("v") != TRAINER_VERSION:
        raise SpecError("E-TRAIN-006", f"{path.name} has trainer state {saved.get('v')!r}, this orch reads 1")
    if not isinstance(saved.get("config"), dict):
        raise SpecError(
            "E-TRAIN-006", f"{path.name} holds no training of orch's own: a script saved it", where=str(path),
            expected="a checkpoint of a run of kind train", fix="launch a new run from another one",
        )  # fmt: skip
    allow = env.allowed | (start.allow if start else frozenset())
    changes = refuse_changes(saved["config"], bound, path.name, allow)
    if saved["corpus"] != fingerprint:
        if not is_allowed(CORPUS, allow):
            raise SpecError(
                "E-TRAIN-007",
                f"data.source: the corpus is not the one that {path.name} was trained on",
                value=fingerprint[:16],
                expected=saved["corpus"][:16],
                fix=f"bring the old text back, launch a new run, or let it change: --allow-config-change {CORPUS}",
            )
        changes[CORPUS] = [saved["corpus"], fingerprint]
    try:
        checkpointer.load(path)
    except ValueError as e:
        if start is not None and not path.is_dir():
            raise gone(start) from e  # removed since it was verified
        raise SpecError("E-TRAIN-011", f"{path.name} does not fit the job's model: {e}", where=str(path)) from e
    checkpointer.history = [*saved.get("history", ()), *_news(env, path, saved["step"], changes, start)]
    for name, (old, new) in changes.items():
        print(f"resume: {name} was {old!r} and is {new!r} from step {saved['step'] + 1} on", flush=True)
    return Position(saved["step"], saved["samples"], read_shards(path))


def _news(env: RankEnv, path: Path, step: int, changes: BoundChanges, start: Start | None) -> list[dict[str, Any]]:
    """What the run's line will be told to have gone through here; [] for a plain resume."""
    foreign = path.parent != env.run.checkpoints
    if not foreign and not changes:
        return []
    origin = read_manifest(path)[0] if foreign else None
    began = {"from_run": origin.run, "checkpoint": str(start.checkpoint)} if origin and start else {}
    return [{"step": step, "attempt": env.attempt, "ts": time.time(), **began, "changes": changes}]
