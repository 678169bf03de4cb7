"""What this rank trains: the job in run.json, and which of its fields a checkpoint binds.

Refusals are `SpecError`s that `workloads.train.__main__` turns into exit 77: a restart cannot help. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError
from workloads.contract.files import read_json
from workloads.runtime.rankenv import RankEnv

_UNBOUND = {"micro_batch", "log_every"}
"""fields of `train` that change neither what is computed nor in which order"""


@dataclass(frozen=True)
class RunConfig:
    job: JobSpec
    gpus_per_rank: int
    code_hash: str


def load(env: RankEnv) -> RunConfig:
    """The job of the run directory. SpecError when it is missing or wrong."""
    path = env.run.run_json
    try:
        row = read_json(path)
        # through JSON: strict models take a list for a tuple there and nowhere else
        job = JobSpec.model_validate_json(json.dumps(row["job"]))
    except (OSError, ValueError, KeyError) as e:
        what = f"{e.error_count()} mistakes: {_first(e)}" if isinstance(e, ValidationError) else f"{e}"
        raise SpecError("E-TRAIN-002", f"the run's job cannot be read: {what}", where=str(path)) from e
    gpus = row.get("gpus_per_rank")
    tree = row.get("tree")
    return RunConfig(job, gpus if type(gpus) is int else 0, Path(tree).name if isinstance(tree, str) else "")


def _first(e: ValidationError) -> str:
    first = e.errors(include_url=False)[0]
    return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"


def bound_fields(job: JobSpec) -> dict[str, Any]:
    """`model.*`, `data.*` and `train.*` fields that a resume must agree on, flat, as JSON values."""
    row = job.model_dump(mode="json", include={"model", "data", "train"})
    flat: dict[str, Any] = {}
    for area, fields in row.items():
        for name, value in fields.items():
            if area != "train" or name not in _UNBOUND:
                flat[f"{area}.{name}"] = value
    return flat


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    """SpecError that names every field in which the checkpoint and the job differ.

    A field that the checkpoint's orch did not know yet counts as today's default: what that orch computed.
    """
    saved = bound_fields(JobSpec(name="defaults")) | dict(saved)
    names = sorted(k for k in saved.keys() | now.keys() if saved.get(k) != now.get(k))
    if names:
        changes = ", ".join(f"{k}: {saved.get(k)!r} -> {now.get(k)!r}" for k in names)
        raise SpecError(
            "E-TRAIN-003",
            f"the job differs from the one that wrote {checkpoint}: {', '.join(names)}",
            value=changes,
            expected="the same model, data and optimizer settings",
            fix="launch a new run for new settings",
        )
