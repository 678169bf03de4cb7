"""What this rank trains: the job of its attempt, which is that of run.json unless a resume changed it.

What of it a checkpoint binds is in `workloads.contract.config.bound`. Refusals are `SpecError`s that
`workloads.train.__main__` turns into exit 77: a restart cannot help. No torch here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError
from workloads.contract.files import read_json
from workloads.contract.jobchanges import Changes, job_file, read_changes
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class RunConfig:
    job: JobSpec
    gpus_per_rank: int
    code_hash: str
    changes: Changes
    """what resumes made of run.json's job"""


def load(env: RankEnv) -> RunConfig:
    """The job of the run directory. SpecError when it is missing or wrong."""
    path = env.run.run_json
    try:
        row = read_json(path)
        path = job_file(env.run, env.attempt)
        # through JSON: strict models take a list for a tuple there and nowhere else
        job = JobSpec.model_validate_json(json.dumps(read_json(path)["job"]))
    except (OSError, ValueError, KeyError) as e:
        what = f"{e.error_count()} mistakes: {_first(e)}" if isinstance(e, ValidationError) else f"{e}"
        raise SpecError("E-TRAIN-002", f"the run's job cannot be read: {what}", where=str(path)) from e
    gpus = row.get("gpus_per_rank")
    tree = row.get("tree")
    code_hash = Path(tree).name if isinstance(tree, str) else ""
    return RunConfig(job, gpus if type(gpus) is int else 0, code_hash, read_changes(env.run, env.attempt))


def _first(e: ValidationError) -> str:
    first = e.errors(include_url=False)[0]
    return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
