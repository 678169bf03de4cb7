"""Launching: `prepare` looks (and touches nothing), `submit` carries a plan out.

The rename of the staged run directory is the submission: before it nothing happened, after it this process may die.
A run directory that is there already is the same run. Called by `orch launch`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import pwd
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.jobs.code import code_state
from orchestrator.jobs.interpreter import Interpreter, look
from orchestrator.jobs.jobfile import LoadedJob
from orchestrator.jobs.plan import LaunchContext, Plan, make_plan
from orchestrator.runs import index
from pods.facts import local_facts
from pods.inventory import load_inventory
from pods.keeper.client import ensure_keeper
from pods.remote.stage import Staged, ensure_home
from pods.tree import ensure_tree, tree_path
from workloads.contract.config.inventory import Inventory
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import RemoteError, SpecError, UsageError
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome, RunDir, make_run_id

BASE_ENV = ("HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "SHELL", "TMPDIR")
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Submission:
    run: RunDir
    created: bool  # False: the run was there already


def prepare(loaded: LoadedJob, *, run_id: str | None, home: OrchHome, cwd: Path, environ: Mapping[str, str]) -> Plan:
    """The plan of a launch. Reads the inventory, the facts of the pod and the state of the code."""
    spec = loaded.spec
    now = time.time()
    chosen = make_run_id(spec.name, now) if run_id is None else _checked_id(run_id, spec.name)
    inventory = load_inventory(home)
    directory = _workdir(spec, cwd, loaded.where)
    rank_python, orch_python = _interpreters(spec, inventory, environ)
    context = LaunchContext(
        run_id=chosen, source=loaded.source, created=now, operator=_operator(), uid=os.getuid(), home=home,
        tree=str(tree_path(home)), cwd=str(directory), env=base_env(spec, rank_python.path, environ),
        rank_python=rank_python, orch_python=orch_python, orch_version=_orch_version(), code=code_state(cwd),
        notes=_notes(spec, directory), where=loaded.where,
    )  # fmt: skip
    local = [name for name, pod in inventory.pods.items() if pod.local]
    facts = local_facts(home, rank_python.path)
    return make_plan(spec, inventory, dict.fromkeys(local, facts), context)


def submit(plan: Plan, home: OrchHome, on_stage: Callable[[str, float], None]) -> Submission:
    """Carry the plan out; `on_stage(stage, seconds)` after each of "tree", "run directory", "keeper".

    Idempotent by run id. LocalError on a full or read-only disk, with nothing left behind. RemoteError when the keeper
    does not start: the run is submitted then, and the next contact starts it.
    """
    began = time.monotonic()

    def done(stage: str) -> None:
        nonlocal began
        on_stage(stage, time.monotonic() - began)
        began = time.monotonic()

    run = home.run(plan.run_id)
    created = not run.run_json.exists()
    if created:
        ensure_home(home)
        tree = ensure_tree(home)
        done("tree")
        created = Staged(run, home).commit(plan.run_json(), plan.resolved_config(), plan.context.code.diff)
        done("run directory")
        if created:
            index.record(home, plan.run_json())
    else:
        tree = Path(plan.context.tree)
    _start_keeper(plan, home, tree if tree.is_dir() else ensure_tree(home), replace=created)
    done("keeper")
    return Submission(run, created)


def _start_keeper(plan: Plan, home: OrchHome, tree: Path, *, replace: bool) -> None:
    try:
        ensure_keeper(home, plan.context.orch_python.path, tree, replace=replace).poke()
    except RemoteError as e:
        raise RemoteError(
            e.code, f"run {plan.run_id} is submitted, but {e.what}", where=e.where, value=e.value, expected=e.expected,
            fix=f"orch status {plan.run_id}   (any contact tries again)",
        ) from e  # fmt: skip


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


def _workdir(spec: JobSpec, cwd: Path, where: Callable[[str], str]) -> Path:
    if spec.workdir is None:
        return cwd.absolute()
    path = (cwd / Path(spec.workdir).expanduser()).absolute()
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise SpecError(
            "E-PLAN-012", f"workdir {what}", where=where("workdir"), value=spec.workdir,
            expected=f"a directory ({path})", fix=f"mkdir -p {path}" if not path.exists() else "name a directory",
        )  # fmt: skip
    return path


def _interpreters(spec: JobSpec, inventory: Inventory, environ: Mapping[str, str]) -> tuple[Interpreter, Interpreter]:
    """(of the ranks, of orch's own parts). Orch's own training loop runs where orch does, unless the job says else."""
    pod = inventory.pods.get(spec.pods[0])
    own = _path(pod.python) if pod and pod.python else sys.executable
    rank = own
    venv = environ.get("VIRTUAL_ENV")
    if spec.python is not None:
        rank = _path(spec.python)
    elif spec.kind == "command" and not (pod and pod.python) and venv and (Path(venv) / "bin" / "python").exists():
        rank = str(Path(venv) / "bin" / "python")
    orch_python = look(own)
    return (orch_python if rank == own else look(rank)), orch_python


def _path(python: str) -> str:
    """Absolute, links kept: a virtual environment is known by the path of its link."""
    return str(Path(python).expanduser().absolute()) if "/" in python else python


def base_env(spec: JobSpec, python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What of the operator's shell a rank gets. The job's own `env` comes on top."""
    env = {k: environ[k] for k in BASE_ENV if environ.get(k)}
    user = _user()
    env.setdefault("HOME", str(Path.home()))
    env.setdefault("USER", user)
    env.setdefault("LOGNAME", env["USER"])
    search = environ.get("PATH") or DEFAULT_PATH
    env["PATH"] = f"{Path(python).parent}:{search}" if "/" in python else search
    if spec.kind == "command" and environ.get("PYTHONPATH"):
        env["PYTHONPATH"] = environ["PYTHONPATH"]
    return env


def _notes(spec: JobSpec, directory: Path) -> tuple[str, ...]:
    if spec.kind == "train" and spec.data.path and not (directory / spec.data.path).exists():
        return (f"data.path {spec.data.path} does not exist here",)
    return ()


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a uid without a name, as in many containers
        return str(os.getuid())


def _operator() -> str:
    return f"{_user()}@{platform.node()}"


def _orch_version() -> str:
    try:
        return importlib.metadata.version("orch-runs")
    except importlib.metadata.PackageNotFoundError:
        return "source"
