"""A pod over SSH as the place of a run: looked at over one connection, then given what the run needs, all by hash.

The code of a `command` job travels as a snapshot of the directory it was launched from (and the repository around it)
and becomes the run's own copy, `<run>/code`; an absolute `workdir` names a directory on the pod, and nothing travels.
Interpreters: the job's `python`, else the pod's, else an environment that orch makes. Called by the launch alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.inventory.findings import judge
from orchestrator.jobs.interpreter import Interpreter
from orchestrator.jobs.jobfile import LoadedJob, requirements_of
from orchestrator.jobs.parity import verdicts_on
from orchestrator.jobs.site import OnStage, Say, Survey, rank_env
from pods.access import open_pod
from pods.environment.ensure import ensure_environment, ensure_python
from pods.environment.spec import EnvSpec, wanted
from pods.facts import PodFacts, collect
from pods.pod import NeedsPython, told
from pods.snapshot import FileChanged, Snapshot, notes, push_snapshot, push_tree, scan
from pods.tree import source_root, tree_hash
from workloads.contract.config.inventory import PodSpec
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import LocalError, SpecError
from workloads.contract.rundir import OrchHome

LOOK_S = 90.0


@dataclass(frozen=True)
class Code:
    """What of this machine a run needs: a snapshot, or nothing; and the directory it runs in, on the pod."""

    snapshot: Snapshot | None
    cwd: str


class FarSite:
    def __init__(self, loaded: LoadedJob, name: str, spec: PodSpec, home: OrchHome, cwd: Path, say: Say) -> None:
        self.loaded, self.name, self.spec, self.home, self.cwd, self.say = loaded, name, spec, home, cwd, say
        self.pod = open_pod(home, name, spec)
        self._facts: PodFacts | None = None
        self._environment: EnvSpec | None = None
        self._snapshot: Snapshot | None = None

    def survey(self, run_id: str) -> Survey:
        job = self.loaded.spec
        # first: it needs no Python there, and once the process of the pod runs some pods allow no second session
        facts = self._facts = collect(self.pod.transport, root=self.spec.root, python=job.python or self.spec.python)
        try:
            there = self.pod.home
        except NeedsPython:
            ensure_python(self.pod.transport, facts, self.home, self.say)
            there = self.pod.home
        named = [p for p in (job.python, self.spec.python) if p is not None]
        env_spec = wanted(facts, requirements_of(self.loaded, self.cwd))
        built = str(there.envs / env_spec.hash / "bin" / "python")
        look = self.pod.call("home.look", {"pythons": [*named, built], "run": run_id}, timeout_s=LOOK_S).fields
        found = _interpreters(self.name, look, [*named, built])
        login = {k: v for k, v in told(look, "env", dict, self.name).items() if isinstance(v, str) and "\0" not in v}
        if not found[built].version:
            found[built] = Interpreter(built, f"{env_spec.python}.0", env_spec.ray, env_spec.has_torch)
        rank, orch = self._choose(job, found, built)
        if built in (rank.path, orch.path):
            self._environment = env_spec
        code = self._code(job, there, run_id)
        self._snapshot = code.snapshot
        return Survey(
            facts=facts, home=there, uid=told(look, "uid", int, self.name),
            tree=str(there.tree(tree_hash(source_root()))),
            cwd=code.cwd or told(login, "HOME", str, self.name), env=rank_env(login, rank.path), rank_python=rank,
            orch_python=orch, brings=tuple(self._brings()), snapshot=code.snapshot.id if code.snapshot else None,
            there=told(look, "run", dict, self.name).get("there") is True,
            verdicts=verdicts_on(self.pod) if "parity" in job.require else (),
            notes=(*_preflight(self.name, facts), *(notes(code.snapshot, job.command or ()) if code.snapshot else ())),
        )  # fmt: skip

    def _choose(self, job: JobSpec, found: dict[str, Interpreter], built: str) -> tuple[Interpreter, Interpreter]:
        """(the ranks', orch's own parts'). An interpreter that a person named runs orch's parts too when it has Ray."""
        rank = found[job.python or self.spec.python or built]
        if self.spec.python is not None:
            return rank, found[self.spec.python]
        return rank, rank if rank.ray else found[built]

    def _code(self, job: JobSpec, there: OrchHome, run_id: str) -> Code:
        if job.kind != "command":
            return Code(None, "")
        if job.workdir is not None and PurePosixPath(job.workdir).is_absolute():
            return Code(None, job.workdir)
        directory = (self.cwd / (job.workdir or "")).absolute()
        if not directory.is_dir():
            raise SpecError(
                "E-PLAN-012", "workdir does not exist here, from where it would travel",
                where=self.loaded.where("workdir"), value=job.workdir, expected=f"a directory ({directory})",
                fix="an absolute path names a directory on the pod",
            )  # fmt: skip
        snapshot = scan(directory, self.home)
        return Code(snapshot, str(there.run(run_id).code / snapshot.cwd))

    def _brings(self) -> list[str]:
        steps = []
        if self._environment is not None:
            steps.append(
                f"the environment {self._environment.hash} (Python {self._environment.python}, "
                f"{len(self._environment.requirements.lines)} requirements) is made on pod {self.name}, "
                "if it is not there"
            )
        if self._snapshot is not None:
            mib = self._snapshot.size_bytes / (1 << 20)
            steps.append(
                f"the code in {self._snapshot.root} ({self._snapshot.files} files, {mib:.1f} MiB, snapshot "
                f"{self._snapshot.id}) travels to pod {self.name}; files that are there do not travel again"
            )
        return steps

    def bring(self, on_stage: OnStage) -> None:
        assert self._facts is not None, "survey comes first"
        if self._environment is not None:
            ensure_environment(self.pod, self._facts, self._environment, self.home, self.say)
            on_stage("environment")
        push_tree(self.pod, self.say)
        on_stage("tree")
        if self._snapshot is not None:
            try:
                push_snapshot(self.pod, self._snapshot, home=self.home, say=self.say)
            except FileChanged as e:
                raise LocalError(
                    e.code, "a file was saved while the launch was on its way", where=e.where, fix="launch again"
                ) from e
            on_stage("code")


def _interpreters(pod: str, look: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Interpreter]:
    """What the pod says of each of `asked`."""
    rows: dict[str, Any] = told(look, "pythons", dict, pod)
    found = {}
    for python in asked:
        row: dict[str, Any] = told(rows, python, dict, pod)
        for key in ("path", "version"):
            told(row, key, str, pod)
        found[python] = Interpreter.told(row)
    return found


def _preflight(pod: str, facts: PodFacts) -> list[str]:
    """What `orch pods check` would complain of."""
    told = [f for f in judge(pod, facts) if f.level != "note" and f.name != "no-gpu"]  # the plan tells the GPUs
    return [f"pod {pod}: {f.text}" + (f" ({f.fix})" if f.fix else "") for f in told]
