"""`orch resume RUN --set KEY=VALUE`: the job of the next attempt, and how it differs from the one that the run has.

Checked as a job file is, with the ranks that the run has. What a launch settles (place, ranks, interpreter, command)
stays. What the checkpoint binds needs `--allow-config-change`, in the words of the rank that would refuse it. Pure, but
for the run's own files; called by `orch resume`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.jobs.overrides import Override, apply_overrides, maker, origin, parse_overrides
from orchestrator.jobs.rules import LATER, batch_rules, broken_rules
from orchestrator.runs.events import read_events
from orchestrator.runs.views import RunView
from pods.speccheck import Subject, check, validate
from pods.specwords import Broken
from workloads.contract.config.bound import bound_fields, refuse_changes
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import IntegrityError, OrchError, UsageError, raise_all
from workloads.contract.jobchanges import Changes, are_changes, changed, differences
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

SETTLED = (
    "name", "kind", "command", "workdir", "pods", "resources", "secrets", "python", "requirements", "require",
)  # fmt: skip
"""what of a job a launch has carried out already"""


@dataclass(frozen=True)
class NewJob:
    old: JobSpec
    spec: JobSpec
    changes: Changes
    """`{"train.lr": {"was": .., "is": ..}}`; {} when everything is as it was"""

    def refuse_unallowed(self, config: Mapping[str, Any], checkpoint: str, allowed: Collection[str]) -> None:
        """SpecError E-TRAIN-003 for fields that were changed now and in which `checkpoint` must not differ.

        `config`: what the checkpoint says of the job that wrote it.
        """
        old, new = bound_fields(self.old), bound_fields(self.spec)
        touched = {k for k in new if old[k] != new[k]}
        # what was not touched now is for the rank, which knows what earlier resumes allowed
        refuse_changes({k: config.get(k, old[k]) if k in touched else new[k] for k in new}, new, checkpoint, allowed)


def new_job(view: RunView, sets: Sequence[str]) -> NewJob:
    """UsageError for what cannot be changed or read, SpecErrors for what would be no job."""
    data = _as_if_typed(_job_now(view), view)
    overrides, errors = parse_overrides(sets)
    errors += [_settled(o, view.run) for o in overrides if o.path[0] in SETTLED]
    old = _read(data, view)

    def where(path: str) -> str:
        return origin(path, overrides) or maker(path, overrides) or f"the job of {view.run.run_id}, {path}"

    def rules(spec: JobSpec) -> list[Broken]:
        found = broken_rules(spec, shortened=origin("train.steps", overrides) is not None)
        return found + (batch_rules(spec, max(view.world_size, 1)) if spec.kind == "train" and not found else [])

    try:
        data = apply_overrides(data, [o for o in overrides if o.path[0] not in SETTLED])
    except OrchError as e:
        raise_all([*errors, e])
    spec = check(JobSpec, data, Subject("JOB", where, LATER, rules), errors)
    return NewJob(old, spec, differences(old.model_dump(mode="json"), spec.model_dump(mode="json")))


def _job_now(view: RunView) -> Mapping[str, Any]:
    """What the next attempt would run with: changes of a resume that has not begun an attempt yet count."""
    job = view.info.get("job")
    found = job if isinstance(job, dict) else {}
    waiting: list[Changes] = []
    for event in read_events(view.run):
        if event.what == "state" and event.to == RunState.STARTING:
            waiting = []
        elif event.what == "state" and are_changes(told := event.data.get("changes")):
            waiting.append(told)
    for changes in waiting:
        found = changed(found, changes)
    return found


def _as_if_typed(job: Mapping[str, Any], view: RunView) -> dict[str, Any]:
    """The parts that are not as they are by default, as a job file would have them: rules ask what was named."""
    plain = JobSpec(name="defaults").model_dump(mode="json")
    data = {k: v for k, v in job.items() if v != plain.get(k)}
    if isinstance(command := data.get("command"), list):  # bytes that are no text; a resume changes none of them
        data["command"] = [str(a).encode("utf-8", "replace").decode() for a in command]
    return {"name": view.name, **data}


def _read(data: Mapping[str, Any], view: RunView) -> JobSpec:
    try:
        return validate(JobSpec, data)
    except (ValidationError, ValueError) as e:
        what = str(e)
        if isinstance(e, ValidationError):
            first = e.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(
            "E-RESUME-007", f"the job of run {view.run.run_id} cannot be read by this orch, so nothing of it can be "
            f"changed: {what}", where=str(view.run.run_json), fix=f"orch resume {view.run.run_id}",
        ) from e  # fmt: skip


def _settled(override: Override, run: RunDir) -> UsageError:
    return UsageError(
        "E-RESUME-006", f"{override.shown} was settled when the run was launched; a resume cannot change it",
        where=override.where, value=override.shown, expected=f"anything but {', '.join(SETTLED)}",
        fix=f"orch launch JOB --resume {run.run_id} {override.where}",
    )  # fmt: skip
