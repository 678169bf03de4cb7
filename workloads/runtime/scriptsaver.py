"""When and how a script's checkpoints are made: the job's `checkpoint` settings, the trainer's own writer.

Every rank makes one and calls it at the same steps. Needs torch, and nothing that is not torch's. Called by `Run`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.contract.files import read_json, try_read_json
from workloads.contract.jobchanges import job_of
from workloads.contract.rundir import TRAINER_FILE
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer, Provenance
from workloads.runtime.newest import choose
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import Retention
from workloads.runtime.state import RankState

RETRY_S = 30.0
HALT_TRIES_S = (1.0, 2.0, 5.0, 10.0)
"""Between tries of the save that a halt waits for."""


@dataclass(frozen=True)
class Settings:
    """`checkpoint` of the job; of a run.json that says nothing of it, its defaults."""

    every_s: float | None = 600.0
    every_steps: int | None = None
    keep: int = 2
    keep_every: int | None = None
    code_hash: str = ""

    @classmethod
    def of(cls, env: RankEnv) -> Settings:
        info = try_read_json(env.run.run_json) or {}
        job = job_of(env.run, env.attempt, info)
        told = job.get("checkpoint") if isinstance(job, dict) else None
        told = told if isinstance(told, dict) else {}
        whole = {k: v for k in ("every_steps", "keep", "keep_every") if type(v := told.get(k)) is int and v > 0}
        every_s = told.get("every_s", cls.every_s)
        tree = info.get("tree")
        return cls(
            every_s=float(every_s) if isinstance(every_s, int | float) else None,
            code_hash=Path(tree).name if isinstance(tree, str) else "", **whole,
        )  # fmt: skip


class ScriptSaver:
    """Saves a `RankState` and finds it again. `due` is rank 0's clock: ranks agree on it in `Run.step`."""

    def __init__(self, env: RankEnv, agreement: Agreement, state: RankState) -> None:
        self._settings = Settings.of(env)
        provenance = Provenance("", self._settings.code_hash, _versions())
        retention = Retention(self._settings.keep, self._settings.keep_every)
        self._checkpointer = Checkpointer(env, agreement, state, provenance, retention)
        self._next = self._later(time.monotonic())

    def restore(self) -> int:
        """Load the newest checkpoint that verifies; the step after which it was made, 0 without one.

        Raises on every rank: IntegrityError when there are checkpoints and none verifies, StaleEpochError.
        """
        path = choose(self._checkpointer)
        if path is None:
            return 0
        row = read_json(path / TRAINER_FILE)
        self._checkpointer.load(path)
        step = int(row["step"])
        print(f"resume: step {step} from {path.name}", flush=True)
        return step

    @property
    def last(self) -> Path | None:
        """The checkpoint that was saved or loaded last."""
        return self._checkpointer.last

    def due(self, now: float) -> bool:
        return self._next is not None and now >= self._next

    def due_at(self, step: int) -> bool:
        """By the job's `checkpoint.every_steps`: the same on every rank."""
        every = self._settings.every_steps
        return every is not None and step % every == 0

    def save(self, step: int) -> Path | None:
        """The new checkpoint; None when it could not be written, which was told."""
        began = time.monotonic()
        path = self._checkpointer.save(step, {"v": 1, "step": step})
        now = time.monotonic()
        self._next = self._later(now) if path or self._next is None else now + RETRY_S
        if path:
            print(f"checkpoint: {path.name} in {now - began:.2f} s", flush=True)
        return path

    def save_surely(self, step: int) -> Path | None:
        """As `save`, again a few times while it fails."""
        path = self.save(step)
        for wait_s in HALT_TRIES_S:
            if path is not None:
                break
            time.sleep(wait_s)
            path = self.save(step)
        return path

    def _later(self, now: float) -> float | None:
        every = self._settings.every_s
        return None if every is None else now + every


def _versions() -> Mapping[str, str]:
    import platform
    import sys

    torch: Any = sys.modules.get("torch")
    found = {"python": platform.python_version()}
    return found if torch is None else {**found, "torch": str(torch.__version__)}
