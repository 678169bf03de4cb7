"""`orch launch --resume`: which checkpoint a new run begins with, asked of the pod where both lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pods.pod import Pod, told
from workloads.contract.allowed import is_allowable
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import UsageError, escape
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome

LOOK_S = 120.0


@dataclass(frozen=True)
class Asked:
    """`ref`: as typed. `allow`: what may differ from the checkpoint's config."""

    ref: str
    allow: tuple[str, ...] = ()


def checked_changes(names: Sequence[str], where: str) -> tuple[str, ...]:
    """UsageError for a name that is no field of model, data or train."""
    for name in names:
        if not is_allowable(name):
            raise UsageError(
                "E-CLI-004", f"{where} cannot be '{escape(name, 60)}'", where=where, value=name,
                expected="a field as the refusal names it, such as train.lr; corpus; or all",
                fix="--allow-config-change train.lr",
            )  # fmt: skip
    return tuple(dict.fromkeys(names))


def find_start(asked: Asked, spec: JobSpec, pod: Pod, home: OrchHome, cwd: Path, *, far: bool) -> dict[str, Any]:
    """For run.json: the checkpoint's path on the pod, its run and step, and what may differ. OrchErrors of the pod."""
    if spec.kind != "train":
        raise UsageError(
            "E-LAUNCH-005", f"--resume is for jobs of kind train, this one's is {spec.kind}", where="--resume",
            value=asked.ref, fix="leave --resume away",
        )  # fmt: skip
    ref = _place(asked.ref, home, cwd, pod.name if far else "")
    fields = pod.call("runs.checkpoint", {"ref": ref}, timeout_s=LOOK_S).fields
    return {
        "checkpoint": told(fields, "path", str, pod.name), "run": told(fields, "run", str, pod.name),
        "step": told(fields, "step", int, pod.name), "allow": list(asked.allow),
    }  # fmt: skip


def _place(ref: str, home: OrchHome, cwd: Path, pod: str) -> str:
    """An absolute path on pod `pod` ("": this machine) or a run id; names of runs are looked up here.

    UsageError for a path that begins nowhere there, and for a run that is known to lie on another pod.
    """
    path = Path(ref).expanduser()
    if path.is_absolute():
        return str(path)
    if not pod and (cwd / path).is_dir():
        return str((cwd / path).absolute())
    if pod and "/" in ref:
        raise UsageError(
            "E-LAUNCH-008", f"--resume is relative, and pod {pod} has no such directory to begin at", where="--resume",
            value=ref, expected="an absolute path on the pod, or a run", fix="orch runs   (the ids of runs)",
        )  # fmt: skip
    from orchestrator.runs.find import pick
    from orchestrator.runs.index import LOCAL, list_runs

    rows = list_runs(home)
    if RUN_ID_PATTERN.fullmatch(ref) and all(row.run != ref for row in rows):
        return ref  # another operator's
    row = pick(rows, ref)
    if row.pod != pod:
        raise UsageError(
            "E-LAUNCH-009", f"run {row.run} lies on {f'pod {row.pod}' if row.pod else 'this machine'}",
            where="--resume", value=ref, expected="a run or a checkpoint on the pod of the launch",
            fix=f"--pod {row.pod or LOCAL}",
        )  # fmt: skip
    return row.run
