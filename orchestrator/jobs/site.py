"""Where a run will lie: what is known of the pod before a plan is made, and what must be brought there to carry it out.

`survey` looks and touches nothing; `bring` makes what the run needs and may be repeated. `LocalSite` is this machine,
`farsite.FarSite` any other. Called by `orchestrator.jobs.launch` alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.jobs.interpreter import Interpreter, look
from orchestrator.jobs.jobfile import LoadedJob
from orchestrator.jobs.parity import Verdicts, verdicts_on
from pods.facts import PodFacts, local_facts
from pods.pod import LocalPod, Pod
from pods.remote.home import DEFAULT_PATH, login_env
from pods.remote.stage import ensure_home
from pods.transport.local import LocalTransport
from pods.tree import ensure_tree, tree_path
from workloads.contract.config.inventory import PodSpec
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError
from workloads.contract.rundir import OrchHome

OnStage = Callable[[str], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """What a plan needs to know of a pod, its facts aside. Paths are absolute, and on the pod."""

    facts: PodFacts
    home: OrchHome
    uid: int
    tree: str
    cwd: str
    env: Mapping[str, str]
    rank_python: Interpreter
    orch_python: Interpreter
    brings: tuple[str, ...] = ()  # what travels there first, in words
    snapshot: str | None = None  # id of the code that travels
    there: bool = False  # the run directory exists already
    verdicts: Verdicts = ()  # of parity runs there; looked for when the job requires them
    notes: tuple[str, ...] = field(default=())


class Site(Protocol):
    @property
    def pod(self) -> Pod: ...

    def survey(self, run_id: str) -> Survey: ...

    def bring(self, on_stage: OnStage) -> None:
        """Have on the pod what `survey` promised; `on_stage(name)` after each part."""
        ...


class LocalSite:
    """This machine. The job runs in the directory it was launched from; nothing but orch's own tree is copied."""

    def __init__(self, loaded: LoadedJob, spec: PodSpec, home: OrchHome, cwd: Path, environ: Mapping[str, str]) -> None:
        self.loaded, self.spec, self.home, self.cwd, self.environ = loaded, spec, home, cwd, environ
        self.pod = LocalPod(home, LocalTransport())

    def survey(self, run_id: str) -> Survey:
        job = self.loaded.spec
        directory = _workdir(job, self.cwd, self.loaded.where)
        rank, orch = self._interpreters()
        return Survey(
            facts=local_facts(self.home, rank.path), home=self.home, uid=os.getuid(), tree=str(tree_path(self.home)),
            cwd=str(directory), env=local_env(job, rank.path, self.environ), rank_python=rank, orch_python=orch,
            there=self.home.run(run_id).run_json.exists(), notes=_notes(job, directory),
            verdicts=verdicts_on(self.pod) if "parity" in job.require else (),
        )  # fmt: skip

    def bring(self, on_stage: OnStage) -> None:
        ensure_home(self.home)
        ensure_tree(self.home)
        on_stage("tree")

    def _interpreters(self) -> tuple[Interpreter, Interpreter]:
        """(the ranks', orch's own parts'). Orch's own training loop runs where orch does, unless the job says else."""
        job, own = self.loaded.spec, _path(self.spec.python) if self.spec.python else sys.executable
        rank = own
        venv = self.environ.get("VIRTUAL_ENV")
        if job.python is not None:
            rank = _path(job.python)
        elif job.kind == "command" and not self.spec.python and venv and (Path(venv) / "bin" / "python").exists():
            rank = str(Path(venv) / "bin" / "python")
        orch = look(own)
        return (orch if rank == own else look(rank)), orch


def rank_env(login: Mapping[str, str], python: str) -> dict[str, str]:
    """The base of a rank's environment: the login's, with the interpreter's own programs found first."""
    search = login.get("PATH") or DEFAULT_PATH
    return {**login, "PATH": f"{Path(python).parent}:{search}" if "/" in python else search}


def local_env(spec: JobSpec, python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What of the operator's shell a rank gets. The job's own `env` comes on top."""
    env = rank_env(login_env(environ), python)
    if spec.kind == "command" and environ.get("PYTHONPATH"):
        env["PYTHONPATH"] = environ["PYTHONPATH"]
    return env


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


def _path(python: str) -> str:
    """Absolute, links kept: a virtual environment is known by the path of its link."""
    return str(Path(python).expanduser().absolute()) if "/" in python else python


def _notes(spec: JobSpec, directory: Path) -> tuple[str, ...]:
    if spec.kind in ("train", "data") and spec.data.path and not (directory / spec.data.path).exists():
        return (f"data.path {spec.data.path} does not exist here",)
    return ()
