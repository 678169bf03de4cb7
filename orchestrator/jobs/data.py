"""A job's data as a task of its own: `orch data check` and `orch data prepare` in the words of a job file.

What the data needs travels along (environment, secrets, interpreter, pods); the model does not. Reads files, writes
nothing. Called by `orch data`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.jobs.jobfile import LoadedJob, load_job, made_job, requirements_of
from workloads.contract.errors import UsageError

KEPT = ("pods", "env", "secrets", "python", "requirements", "data")
LOCAL = "local"


@dataclass(frozen=True)
class Asked:
    """What was typed. data: keys of the job's `data` block, `dataset` one of them; task: of its `task` block."""

    job: str | None
    data: Mapping[str, Any]
    task: Mapping[str, Any]
    sets: Sequence[str] = ()
    pod: str | None = None
    python: str | None = None


def data_job(asked: Asked, cwd: Path) -> LoadedJob:
    """The job of kind `data`. UsageError, or errors as for a job file."""
    pods = [asked.pod] if asked.pod else []
    row: dict[str, Any] = {"data": {}}
    if asked.job is not None:
        loaded = load_job(asked.job, sets=asked.sets, pods=pods, cwd=cwd)
        told = loaded.spec.model_dump(mode="json", exclude_unset=True)
        if loaded.spec.kind not in ("train", "data"):
            raise UsageError(
                "E-DATA-051", f"{asked.job} is a job of kind {loaded.spec.kind}, which reads no data",
                where="orch data", value=asked.job, expected="a job of kind train", fix="orch data check tiny",
            )  # fmt: skip
        row |= {key: told[key] for key in KEPT if key in told}
        if loaded.spec.requirements is not None:  # the job that is made has no file beside which it could lie
            row["requirements"] = str(requirements_of(loaded, cwd))
        row["train"] = loaded.spec.train.model_dump(mode="json", include={"seed", "global_batch"})
    elif "source" not in asked.data:
        raise UsageError(
            "E-DATA-050", "what data? Name a job, or a source", where="orch data", expected="JOB, or --source",
            fix=f"orch data {asked.task['kind']} tiny   (or: --source text --path DIR)",
        )  # fmt: skip
    row["data"] = _changed(row["data"], asked.data)
    row |= {"name": "data", "kind": "data", "task": dict(asked.task)}
    if "out" in row["task"]:
        row["task"]["out"] = place_out(row["task"]["out"], asked.pod or row.get("pods", [LOCAL])[0], cwd)
    row |= {"python": asked.python} if asked.python else {}
    return made_job(row, shlex.join(_words(asked)), name=None, sets=asked.sets if asked.job is None else (), pods=pods)


def _changed(before: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """With what was typed. Another source has a place of its own."""
    kept = dict(before)
    if "source" in typed and typed["source"] != kept.get("source", "stdlib"):
        for key in ("path", "dataset", "fallback", "fallback_path", "truncate"):
            kept.pop(key, None)
    return {**kept, **typed}


def _words(asked: Asked) -> list[str]:
    """The command line again."""
    words = ["orch", "data", str(asked.task["kind"]), *([asked.job] if asked.job else [])]
    dataset = asked.data.get("dataset")
    named = {**asked.data, **(dataset if isinstance(dataset, dict) else {}), **asked.task}
    for key, value in {**named, "pod": asked.pod, "python": asked.python}.items():
        words += [] if value is None or key in ("dataset", "kind") else [f"--{key.replace('_', '-')}", str(value)]
    for one in asked.sets:
        words += ["--set", one]
    return words


def place_out(out: str, pod: str, cwd: Path) -> str:
    """`--out` as the pod finds it. UsageError when it is relative to a place that the pod does not have."""
    if pod == LOCAL:
        return str(cwd / Path(out).expanduser())
    if out.startswith(("/", "~/")):
        return out
    raise UsageError(
        "E-DATA-053", f"--out is relative, and pod {pod} has no such directory to begin at", where="--out", value=out,
        expected="an absolute path on the pod, or one in its home", fix=f"--out ~/{out}",
    )  # fmt: skip
