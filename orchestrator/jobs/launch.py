"""Launching: `prepare` looks (and touches nothing), `submit` carries a plan out, on this machine or on any other.

The rename of the staged run directory is the submission: before it nothing happened, after it this process may die.
A run directory that is there already is the same run. Called by `orch launch`.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.jobs.code import code_state, own_code_state
from orchestrator.jobs.jobfile import LoadedJob
from orchestrator.jobs.place import choose_pod
from orchestrator.jobs.plan import LaunchContext, Plan, make_plan
from orchestrator.jobs.site import LocalSite, Say, Site
from orchestrator.jobs.start import Asked, find_start
from orchestrator.runs import index
from pods.inventory import load_inventory
from pods.pod import Pod, told
from pods.remote.home import user_name
from pods.tree import source_root
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.errors import (
    ConflictError,
    IntegrityError,
    OrchError,
    RemoteError,
    UnreachableError,
    UsageError,
)
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome, RunDir, make_run_id

STAGE_S = 600.0
KEEPER_S = 60.0
OnTime = Callable[[str, float], None]


@dataclass(frozen=True)
class Prepared:
    """A plan, and where it can be carried out. `secrets` travel beside it and are in nothing that is shown."""

    plan: Plan
    site: Site
    home: OrchHome  # the operator's
    far: bool = False  # the pod is another machine
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def run(self) -> RunDir:
        """The run's directory on its pod."""
        return self.plan.context.home.run(self.plan.run_id)

    def close(self) -> None:
        self.site.pod.close()


def prepare(
    loaded: LoadedJob,
    *,
    run_id: str | None,
    home: OrchHome,
    cwd: Path,
    environ: Mapping[str, str],
    resume: Asked | None = None,
    on_time: OnTime = lambda stage, seconds: None,
    say: Say = lambda text: None,
) -> Prepared:
    """The plan of a launch. Reads the inventory, the facts of the pod and the state of the code.

    ConflictError when `run_id` is a run on another pod, as far as this home knows.
    `resume`: the checkpoint that the run shall begin with. `say` hears what a long stage does meanwhile, here and in
    `submit`.
    """
    spec, now, began = loaded.spec, time.time(), time.monotonic()
    chosen = make_run_id(spec.name, now) if run_id is None else _checked_id(run_id, spec.name)
    inventory = load_inventory(home)
    name, pod_spec = choose_pod(spec, inventory, loaded.where)
    if run_id is not None:
        _refuse_elsewhere(home, run_id, index.LOCAL if pod_spec.local else name, inventory)
    secrets = _secrets(spec.secrets, environ, home)
    site: Site
    if pod_spec.local:
        site = LocalSite(loaded, pod_spec, home, cwd, environ)
    else:
        site = _far(loaded, name, pod_spec, home, cwd, say)
    try:
        seen = site.survey(chosen)
        start = find_start(resume, spec, site.pod, home, cwd, far=not pod_spec.local) if resume else None
        context = LaunchContext(
            run_id=chosen, source=loaded.source, created=now, operator=f"{user_name()}@{platform.node()}",
            uid=seen.uid, home=seen.home, tree=seen.tree, cwd=seen.cwd, env=seen.env,
            rank_python=seen.rank_python, orch_python=seen.orch_python, orch_version=_orch_version(),
            code=own_code_state(source_root()) if spec.device is not None else code_state(cwd),
            notes=seen.notes, brings=seen.brings, snapshot=seen.snapshot, where=loaded.where,
            verdicts=seen.verdicts, start=start,
        )  # fmt: skip
        plan = make_plan(spec, inventory, {name: seen.facts}, context)
    except BaseException:
        site.pod.close()
        raise
    if not pod_spec.local:
        on_time("connect, facts", time.monotonic() - began)
    return Prepared(plan, site, home, not pod_spec.local, secrets)


def submit(prepared: Prepared, on_time: OnTime) -> bool:
    """Carry the plan out; whether the run was made now. `on_time(stage, seconds)` after each stage.

    Idempotent by run id. Whatever is raised before the run directory is there left nothing but what the next launch
    uses. RemoteError when the keeper does not start: the run is submitted then, and the next contact starts it.
    """
    plan, pod = prepared.plan, prepared.site.pod
    clock = _Clock(on_time)
    there = _there(pod, plan.run_id)
    if not there:
        prepared.site.bring(clock.done)
        try:
            there = not _stage(prepared)
        except IntegrityError:  # a file of the pod's store was damaged, and is dropped now: it travels again, once
            prepared.site.bring(lambda stage: None)
            there = not _stage(prepared)
        clock.done("run directory")
    index.record(prepared.home, plan.run_json(), plan.placement.pod if prepared.far else "", created=not there)
    _start_keeper(prepared, replace=not there)
    clock.done("keeper")
    return not there


def _stage(prepared: Prepared) -> bool:
    """Make the run directory; False when it was there."""
    plan = prepared.plan
    row = {
        "run": plan.run_id, "run_json": plan.run_json(), "resolved_config": plan.resolved_config(),
        "secrets": dict(prepared.secrets), "code": plan.context.snapshot,
    }  # fmt: skip
    answer = prepared.site.pod.call("runs.stage", row, plan.context.code.diff, timeout_s=STAGE_S)
    return told(answer.fields, "created", bool, prepared.site.pod.name)


def is_there(prepared: Prepared) -> bool:
    """Whether the run was submitted, as far as its pod can say now."""
    try:
        return _there(prepared.site.pod, prepared.plan.run_id)
    except OrchError:
        return False


def _there(pod: Pod, run_id: str) -> bool:
    look = pod.call("home.look", {"run": run_id, "pythons": []}).fields
    return told(look, "run", dict, pod.name).get("there") is True


class _Clock:
    def __init__(self, on_time: OnTime) -> None:
        self.on_time, self.began = on_time, time.monotonic()

    def done(self, stage: str) -> None:
        now = time.monotonic()
        self.on_time(stage, now - self.began)
        self.began = now


def _start_keeper(prepared: Prepared, *, replace: bool) -> None:
    plan = prepared.plan
    own = {"python": plan.context.orch_python.path, "tree": plan.context.tree, "replace": True}
    pod = prepared.site.pod
    try:
        awake = pod.call("runs.wake", own if replace else {}, timeout_s=KEEPER_S).fields.get("awake")
        if awake is not True:  # no run there can say from which files it runs
            prepared.site.bring(lambda stage: None)
            pod.call("runs.wake", own, timeout_s=KEEPER_S)
    except (RemoteError, UnreachableError) as e:
        raise _submitted_but(plan.run_id, e) from e


def _submitted_but(run_id: str, e: OrchError) -> OrchError:
    return type(e)(
        e.code, f"run {run_id} is submitted, but {e.what}", where=e.where, value=e.value, expected=e.expected,
        fix=f"orch status {run_id}   (any contact tries again)",
    )  # fmt: skip


def _far(loaded: LoadedJob, name: str, spec: PodSpec, home: OrchHome, cwd: Path, say: Say) -> Site:
    from orchestrator.jobs.farsite import FarSite  # SSH is imported for pods that need it

    return FarSite(loaded, name, spec, home, cwd, say)


def _secrets(names: Sequence[str], environ: Mapping[str, str], home: OrchHome) -> Mapping[str, str]:
    if not names:
        return {}
    from pods.secrets import collect

    return collect(names, environ, home)


def _checked_id(run_id: str, name: str) -> str:
    match = RUN_ID_PATTERN.fullmatch(run_id)
    if match is None:
        raise UsageError(
            "E-LAUNCH-001", "--id is not a run id", where="--id", value=run_id,
            expected="<name>-<yyyymmddThhmmssZ>-<4 hex digits>", fix=f"--id {make_run_id(name)}",
        )  # fmt: skip
    if match["name"] != name:
        raise UsageError(
            "E-LAUNCH-002", "--id belongs to another name than the job's", where="--id", value=run_id, expected=name,
            fix=f"--name {match['name']}",
        )  # fmt: skip
    return run_id


def _refuse_elsewhere(home: OrchHome, run_id: str, pod: str, inventory: Inventory) -> None:
    """Its own pod would be asked alone, and know nothing of it: two runs of one id, of which one is seen."""
    known = next((row for row in index.list_runs(home) if row.run == run_id and row.present), None)
    owner = known.pod or index.LOCAL if known is not None else pod
    if owner == pod:
        return
    there = "on this machine" if owner == index.LOCAL else f"on pod {owner}"
    found = f"--pod {owner}   (it is that run; without --id it is a new one)"
    raise ConflictError(
        "E-LAUNCH-011", f"run {run_id} lies {there}", where="--id", value=f"--pod {pod}", expected=f"--pod {owner}",
        fix=found if owner in inventory.pods else "orch status   (finds the runs of a pod that has another name now)",
    )  # fmt: skip


def _orch_version() -> str:
    try:
        return importlib.metadata.version("orch-runs")
    except importlib.metadata.PackageNotFoundError:
        return "source"
