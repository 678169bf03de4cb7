"""`orch gpu` as a job: a benchmark of suite `device`, under a name of its own. Pure."""

from __future__ import annotations

import shlex

from orchestrator.jobs.jobfile import LoadedJob, made_job

SUITE = "device"


def gpu_job(pod: str | None = None, python: str | None = None) -> LoadedJob:
    """The job; SpecErrors as for a job file."""
    data = {"name": "gpu", "kind": "bench", "bench": {"suites": [SUITE]}, **({"python": python} if python else {})}
    words = ["orch", "gpu", *([pod] if pod else []), *(["--python", python] if python else [])]
    return made_job(data, shlex.join(words), name=None, pods=[pod] if pod else [])
