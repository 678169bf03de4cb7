"""Who this rank is: the environment variables that orch sets, read once. Standard library only.

`RankEnv.read()` is None outside orch, so that a script runs unchanged without it. Called by `Run` and the trainer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.allowed import ALLOWED, RESUME_FROM
from workloads.contract.rundir import RunDir


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    raw = env.get(name, "")
    return int(raw) if raw.isascii() and raw.isdigit() else default


@dataclass(frozen=True)
class RankEnv:
    run: RunDir
    run_id: str
    rank: int
    local_rank: int
    world_size: int
    attempt: int
    epoch: int
    pod: str
    stackdump: Path | None
    local_world_size: int = 1
    allowed: frozenset[str] = frozenset()
    """fields of the config in which a checkpoint may differ from the job, for a person said so"""
    resume_from: str | None = None
    """the checkpoint that the newest resume named; nothing older is used in its place"""

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> RankEnv | None:
        """None when ORCH_RUN_DIR is not set; a variable that is missing or no number gets its single-rank value."""
        env = os.environ if environ is None else environ
        raw_dir = env.get("ORCH_RUN_DIR")
        if not raw_dir:
            return None
        run = RunDir(Path(raw_dir))
        attempt = _number(env, "ORCH_ATTEMPT", 1)
        dump = env.get("ORCH_STACKDUMP")
        return cls(
            run=run,
            run_id=env.get("ORCH_RUN_ID") or run.run_id,
            rank=_number(env, "RANK", 0),
            local_rank=_number(env, "LOCAL_RANK", 0),
            world_size=max(1, _number(env, "WORLD_SIZE", 1)),
            attempt=attempt,
            epoch=_number(env, "ORCH_EPOCH", attempt),
            pod=env.get("ORCH_POD") or "local",
            stackdump=Path(dump) if dump else None,
            local_world_size=max(1, _number(env, "LOCAL_WORLD_SIZE", 1)),
            allowed=frozenset(filter(None, env.get(ALLOWED, "").split(","))),
            resume_from=env.get(RESUME_FROM) or None,
        )
