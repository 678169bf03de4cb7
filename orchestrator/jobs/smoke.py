"""`orch smoke` as a job: a person's own, made short. Reads the job file, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.jobs.jobfile import LoadedJob, load_job
from workloads.contract.errors import UsageError

STEPS = 250
"""Enough for a first 50 and a last 200 that share no row."""
PREFIX = "smoke-"
MAX_NAME = 39
KINDS = ("train", "command")


def smoke_job(
    ref: str, *, steps: int | None, sets: Sequence[str] = (), pods: Sequence[str] = (), cwd: Path, most: int = STEPS
) -> LoadedJob:
    """The job in `ref` with `steps`, or with `most` where it has more; its name begins with `smoke-`.

    A job of kind `command` runs as it is, to its end. UsageError for other kinds, and for `steps` of a command;
    SpecErrors as for a job file.
    """
    loaded = load_job(ref, sets=sets, pods=pods, cwd=cwd)
    spec = loaded.spec
    if spec.kind not in KINDS:
        raise UsageError(
            "E-SMOKE-006", f"{ref} is of kind `{spec.kind}`: it makes no training steps", where="JOB", value=ref,
            expected="a job of kind train or command", fix=f"orch {spec.kind}",
        )  # fmt: skip
    if spec.kind == "command":
        if steps is not None:
            raise UsageError(
                "E-SMOKE-007", "--steps is for kind `train`: orch does not know how a command is made short",
                where="--steps", value=steps, fix="remove --steps, and give the command its own",
            )  # fmt: skip
    elif steps is not None or spec.train.steps > most:
        loaded = load_job(ref, sets=[*sets, f"train.steps={steps or most}"], pods=pods, cwd=cwd)
    name = loaded.spec.name
    if not name.startswith(PREFIX):
        name = (PREFIX + name)[:MAX_NAME].rstrip("-")
    return replace(loaded, spec=loaded.spec.model_copy(update={"name": name}))
