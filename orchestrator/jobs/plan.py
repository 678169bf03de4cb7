"""A plan: what a launch would do, as data. Pure: job, inventory, facts and context in, words and run.json out.

`orch launch --dry-run` prints `render()`; `submit` carries the same object out. Nothing here reads a file, a clock or
the environment: `orchestrator.jobs.launch.prepare` does.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.jobs import sizes
from orchestrator.jobs.code import CodeState
from orchestrator.jobs.interpreter import Interpreter
from orchestrator.jobs.parity import Verdicts, prove
from orchestrator.jobs.place import Placement, Where, choose_pod, place_ranks
from orchestrator.jobs.rules import batch_rules, interval_beyond_end, warmup_beyond_end
from pods.clusterid import cluster_id
from pods.facts import PodFacts
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import LocalError, RemoteError, SpecError, raise_all
from workloads.contract.rundir import OrchHome

MIN_HOME_MIB = 1024
MIN_SHM_MIB = 256
TIGHT_SHARE = 0.5
"""Of the free disk: more than that for checkpoints alone is told."""
COPY_SHARE = 0.5
"""Of the memory that is available: as `workloads.runtime.checkpoint` has it."""
MIN_PYTHON = (3, 11)
LOOPBACK = "127.0.0.1"
_MODULE: Mapping[str, tuple[str, ...]] = {
    "train": ("-m", "workloads.train"),
    "parity": ("-P", "-m", "workloads.parity"),  # the kernels judged are those of the run's tree, whatever lies in cwd
    "bench": ("-P", "-m", "workloads.bench"),
    "decode": ("-P", "-m", "workloads.decode"),
    "data": ("-P", "-m", "workloads.dataprep"),
}


@dataclass(frozen=True)
class LaunchContext:
    """Everything a plan needs that is neither job, nor inventory, nor a fact of a pod."""

    run_id: str
    source: str
    created: float  # Unix seconds
    operator: str
    uid: int
    home: OrchHome
    tree: str
    cwd: str
    env: Mapping[str, str]  # base environment of a rank, the job's not in it yet
    rank_python: Interpreter
    orch_python: Interpreter
    orch_version: str
    code: CodeState = field(default_factory=CodeState)
    notes: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()  # what travels to a pod over SSH before anything else, in words
    snapshot: str | None = None  # id of the code that travels
    where: Where = field(default=lambda path: path, compare=False)
    verdicts: Verdicts = ()  # of parity runs on the pod
    start: Mapping[str, Any] | None = None  # the checkpoint that the run begins with, as `jobs.start` tells it


@dataclass(frozen=True)
class Plan:
    spec: JobSpec
    context: LaunchContext
    placement: Placement
    facts: PodFacts
    argv: tuple[str, ...]
    cluster: str
    warnings: tuple[str, ...]
    proof: str | None = None  # what the job requires of the pod, and that it is so

    @property
    def run_id(self) -> str:
        return self.context.run_id

    def run_json(self) -> dict[str, Any]:
        """The content of run.json; see runbooks/design/01-local-thread.md."""
        c, p = self.context, self.placement
        return {
            "v": 1,
            "run": c.run_id,
            "name": self.spec.name,
            "kind": self.spec.kind,
            "created": c.created,
            "operator": c.operator,
            "source": c.source,
            "job": self.spec.model_dump(),
            "head": p.pod,
            "cluster": self.cluster,
            "pods": [
                {
                    "name": p.pod, "address": LOOPBACK, "ranks": list(range(p.ranks)), "gpus": p.gpus,
                    "python": c.rank_python.path, "orch_python": c.orch_python.path, "root": str(c.home.path),
                }
            ],
            "world_size": p.ranks,
            "cpus_per_rank": p.cpus_per_rank,
            "gpus_per_rank": p.gpus_per_rank,
            "argv": list(self.argv),
            "cwd": c.cwd,
            "env": {**c.env, **self.spec.env},
            "tree": c.tree,
            "code": {"commit": c.code.commit, "dirty": c.code.dirty, "snapshot": c.snapshot},
            "versions": {"orch": c.orch_version, "python": c.orch_python.version, "ray": c.orch_python.ray},
            **({"start": dict(c.start)} if c.start else {}),
        }  # fmt: skip

    def resolved_config(self) -> dict[str, Any]:
        """The job with every `auto` resolved: what is really carried out."""
        job = self.spec.model_dump()
        job["resources"] = {
            "ranks": self.placement.ranks,
            "gpus_per_rank": self.placement.gpus_per_rank,
            "cpus_per_rank": self.placement.cpus_per_rank,
        }
        return job

    def steps(self) -> list[str]:
        """What happens, in order, in words."""
        c, p = self.context, self.placement
        each = (
            f"{p.cpus_per_rank} CPU{'s' * (p.cpus_per_rank > 1)}, {p.gpus_per_rank} GPU{'s' * (p.gpus_per_rank != 1)}"
        )
        return [
            *([self.proof] if self.proof else []),
            *([self._start(c.start)] if c.start else []),
            *c.brings,
            f"orch's own files are copied to {c.tree}, if they are not there",
            f"the run directory {c.home.runs / c.run_id} is made: from here on the run is submitted",
            f"the keeper of pod {p.pod} is started, if it does not run, and told",
            f"the keeper starts Ray (cluster {self.cluster}), if it is down, and in it a supervisor for this run",
            f"the supervisor waits for {p.ranks} x ({each}) on pod {p.pod}",
            f"{p.ranks} rank{'s are' if p.ranks > 1 else ' is'} started in {c.cwd}: {shlex.join(self.argv)}",
            *self._care(),
        ]

    def _start(self, start: Mapping[str, Any]) -> str:
        allow = f"; what may differ from its config: {', '.join(start['allow'])}" if start["allow"] else ""
        return f"the run begins behind step {start['step']} of {start['run']}: {start['checkpoint']}{allow}"

    def _care(self) -> list[str]:
        restart = self.spec.restart
        again = f"a rank that dies is started again, at most {restart.max} times without a new step"
        if self.spec.kind == "command":
            return [again]
        if self.spec.kind == "parity":
            return [*self._parity(), "an attempt that dies is started again and goes on behind the cells that are done"]
        if self.spec.kind == "bench":
            return [*self._bench(), "an attempt that dies is started again and goes on behind the cases that are done"]
        if self.spec.kind == "decode":
            return [*self._decode(), "an attempt that dies is started again and goes on behind the turns that are done"]
        if self.spec.kind == "data":
            return [self._data(), "an attempt that dies is started again; parts that are done are kept"]
        spec, checkpoint = self.spec, self.spec.checkpoint
        when = [f"every {checkpoint.every_steps} steps"] if checkpoint.every_steps else []
        when += [f"every {checkpoint.every_s:g} s"] if checkpoint.every_s else []
        return [
            f"{spec.train.steps} steps of {sizes.short(sizes.tokens_a_step(spec))} tokens train a model of about "
            f"{sizes.short(sizes.parameters(spec.model, spec.data.tokenizer))} parameters on {spec.data.source}",
            f"a checkpoint {' and '.join([*when, 'at the end'])}; the newest {checkpoint.keep} are kept"
            f"{self._room(spec)}",
            again,
        ]

    def _room(self, spec: JobSpec) -> str:
        kept = spec.checkpoint.keep_every
        more = f", and those of every {kept} steps" if kept else ""
        return (
            f"{more}: {sizes.checkpoint_mib(spec)} MiB each, at most {max(1, sizes.checkpoints_mib(spec))} of the "
            f"{self.facts.home_free_mib} MiB free"
        )

    def _parity(self) -> list[str]:
        asked, gpu = self.spec.parity, self.placement.gpus > 0
        which = f"cell {asked.only} of" if asked.only else f"{'the whole matrix' if asked.full else 'the matrix'} of"
        return [
            f"{which} {', '.join(asked.suites)}: Triton {'on the GPU' if gpu else 'in its interpreter on the CPU'} "
            f"against the reference, seed {asked.seed}",
            "a row a cell; at the end a table and a verdict, go or no-go",
        ]

    def _bench(self) -> list[str]:
        asked, gpu = self.spec.bench, self.placement.gpus > 0
        size = "a few cases of " if asked.quick else ""
        where = "the GPU" if gpu else "the CPU, tiny and by wall clock: a test of the bench itself"
        return [
            f"the memory is measured first, then {size}{', '.join(asked.suites)} on {where}, seed {asked.seed}",
            "a row a case: checked, then timed, beside the limit and every peer that imports; at the end a table, "
            "plots and a page",
        ]

    def _decode(self) -> list[str]:
        asked, gpu = self.spec.decode, self.placement.gpus > 0
        if asked.weights is not None:
            model = f"the weights of {asked.weights}"
        else:
            model = f"random weights, about {sizes.short(sizes.parameters(self.spec.model))} parameters"
        if isinstance(asked.prompts, str):
            what = f"the prompts in {asked.prompts} are answered"
        else:
            what = f"{len(asked.prompts)} conversation{'s are' if len(asked.prompts) > 1 else ' is'} answered"
        how = {"full": "without a cache", "cache": "on a cache"}.get(asked.backend, f"on a cache {asked.kv_policy}")
        return [
            f"{what} {how} by {model} on the {'GPU' if gpu else 'CPU'}, at most {asked.max_new_tokens} tokens a reply",
            "a row a turn: text, times, bytes and memory; at the end a summary",
        ]

    def _data(self) -> str:
        task, data = self.spec.task, self.spec.data
        if task.kind == "prepare":
            most = "" if task.max_tokens is None else f"about {sizes.short(task.max_tokens)} tokens of "
            return f"{most}source {data.source} is tokenized by {data.tokenizer} into hashed shards in {task.out}"
        long = f"{task.seconds:g} s" + ("" if task.batches is None else f", or {task.batches} batches")
        return f"source {data.source} is read as a training would, for {long}, and timed"

    def render(self) -> str:
        """For a person: no final newline."""
        lines = [f"plan for run {self.run_id} ({self.spec.kind}, from {self.context.source})"]
        lines += [f"  {i}. {step}" for i, step in enumerate(self.steps(), 1)]
        lines += [f"  warning: {w}" for w in self.warnings]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run_id,
            "source": self.context.source,
            "steps": self.steps(),
            "warnings": list(self.warnings),
            "run_json": self.run_json(),
        }


def make_plan(spec: JobSpec, inventory: Inventory, facts: Mapping[str, PodFacts], context: LaunchContext) -> Plan:
    """SpecError for a job that cannot be carried out on these pods, LocalError for a machine that cannot do it."""
    pod, pod_spec = choose_pod(spec, inventory, context.where)
    here = facts[pod]
    _refuse_root(pod, pod_spec, context)
    _refuse_requirements(spec, pod, pod_spec, context)
    _refuse_python(spec, pod, pod_spec, context)
    placement = place_ranks(spec, pod, here, context.where)
    if spec.kind == "train":
        raise_all([b.error("JOB", context.where(b.path)) for b in batch_rules(spec, placement.ranks)])
    _refuse_disk(spec, pod_spec, here, context)
    argv = spec.command or [context.rank_python.path, *_MODULE[spec.kind]]
    cluster = cluster_id([pod], context.uid, context.home, context.orch_python.ray or "none")
    proof = _proof(spec, placement, pod_spec, here, context)
    return Plan(
        spec, context, placement, here, tuple(argv), cluster, _warnings(spec, here, context, placement.ranks), proof
    )


def _proof(
    spec: JobSpec, placement: Placement, pod_spec: PodSpec, facts: PodFacts, context: LaunchContext
) -> str | None:
    if "parity" not in spec.require:
        return None
    words = ["orch parity", *([] if pod_spec.local else [f"--pod {placement.pod}"])]
    words += [f"--python {shlex.quote(spec.python)}"] if spec.python else []
    return prove(
        placement.pod, command=" ".join(words), facts=facts, python=context.rank_python, gpus=placement.gpus,
        verdicts=context.verdicts,
    )  # fmt: skip


def _refuse_root(pod: str, pod_spec: PodSpec, context: LaunchContext) -> None:
    if pod_spec.local and pod_spec.root is not None and OrchHome.from_env({"ORCH_HOME": pod_spec.root}) != context.home:
        raise SpecError(
            "E-PLAN-007", f"pods.{pod}.root differs from this machine's own home", where=str(context.home.inventory),
            value=pod_spec.root, expected=str(context.home.path), fix=f"remove `root` of pod {pod}, or set ORCH_HOME",
        )  # fmt: skip


def _refuse_requirements(spec: JobSpec, pod: str, pod_spec: PodSpec, context: LaunchContext) -> None:
    if spec.requirements is not None and pod_spec.local:
        raise SpecError(
            "E-PLAN-013", f"pod {pod} is this machine, where orch makes no environments",
            where=context.where("requirements"), value=spec.requirements,
            fix="python: .venv/bin/python   (an environment of your own)",
        )  # fmt: skip


def _refuse_python(spec: JobSpec, pod: str, pod_spec: PodSpec, context: LaunchContext) -> None:
    kind, there = (LocalError, "") if pod_spec.local else (RemoteError, f" on pod {pod}")
    for python, area in ((context.orch_python, "orch's own parts"), (context.rank_python, "the ranks")):
        if not python.version:
            raise kind(
                "E-PLAN-008", f"the Python for {area} cannot be run{there}", where=context.where("python"),
                value=python.path,
                fix="give the path of an interpreter: --set python=/usr/bin/python3",
            )  # fmt: skip
        old = _version(python.version) < MIN_PYTHON
        if old and (python is context.orch_python or spec.kind != "command"):
            raise kind(
                "E-PLAN-009", f"the Python for {area} is too old{there}", where=python.path, value=python.version,
                expected="3.11 or 3.12", fix="install Python 3.12 and orch in it",
            )  # fmt: skip
    missing = [] if context.orch_python.ray else [("Ray", context.orch_python)]
    if spec.kind != "command" and not context.rank_python.torch:
        missing.append(("torch", context.rank_python))
    elif spec.kind == "parity" and context.rank_python.torch_version and not context.rank_python.triton_version:
        missing.append(("triton", context.rank_python))
    if missing:
        what, python = missing[0]
        raise kind(
            "E-PLAN-010", f"{what} is not installed for this Python{there}", where=python.path,
            fix=_install(what, python.path, pod, pod_spec),
        )  # fmt: skip


def _install(what: str, python: str, pod: str, pod_spec: PodSpec) -> str:
    if what == "triton":  # CUDA builds of torch bring it, CPU builds do not
        return f"{'' if pod_spec.local else f'orch pods exec {pod} -- '}{python} -m pip install triton"
    if pod_spec.local:
        return f"{python} -m pip install 'orch-runs[pod]'"
    return f"name no `python`: orch then makes an environment (orch pods bootstrap {pod})"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split(".")[:2])


def _refuse_disk(spec: JobSpec, pod_spec: PodSpec, facts: PodFacts, context: LaunchContext) -> None:
    need = MIN_HOME_MIB + (sizes.checkpoints_mib(spec) if spec.kind == "train" else 0)
    if facts.home_free_mib < need:
        kind, fix = (
            (LocalError, "free some space, or point ORCH_HOME to another disk")
            if pod_spec.local
            else (RemoteError, "orch pods gc, or another disk: `root:` of the pod in pods.yaml")
        )
        raise kind(
            "E-PLAN-011", "too little free disk for this run", where=str(context.home.path),
            value=f"{facts.home_free_mib} MiB free", expected=f"at least {need} MiB (checkpoints included)", fix=fix,
        )  # fmt: skip


def _about_checkpoints(spec: JobSpec, facts: PodFacts, ranks: int) -> list[str]:
    """What is enough now and may not be later, on a disk that others use too; and where copies have no room."""
    found = []
    need = sizes.checkpoints_mib(spec)
    if need > facts.home_free_mib * TIGHT_SHARE:
        found.append(f"checkpoints will take up to {need} of the {facts.home_free_mib} MiB free: fewer are kept with "
                     "checkpoint.keep, or with a larger checkpoint.keep_every")  # fmt: skip
    copies = sizes.copies_mib(spec, ranks)
    if spec.checkpoint.mode == "async" and copies > facts.ram_available_mib * COPY_SHARE:
        found.append(f"copies for checkpoint.mode async take {copies} MiB of memory, {facts.ram_available_mib} MiB "
                     "are available: training will wait for each save (mode sync)")  # fmt: skip
    return found


def _warnings(spec: JobSpec, facts: PodFacts, context: LaunchContext, ranks: int) -> tuple[str, ...]:
    found = list(context.notes)
    if spec.kind == "train":
        found += _about_checkpoints(spec, facts, ranks)
    if facts.shm_mib < MIN_SHM_MIB:
        found.append(f"/dev/shm has {facts.shm_mib} MiB free; Ray then uses slower storage (docker run --shm-size=1g)")
    if warmup_beyond_end(spec):
        found.append(f"the run ends within its warm-up of {spec.train.warmup_steps} steps: train.lr is not reached")
    if interval_beyond_end(spec):
        found.append("checkpoint.every_steps is larger than train.steps: it will not be reached")
    if facts.gpu_error:
        found.append(f"the GPUs cannot be listed: {facts.gpu_error}")
    if spec.kind == "command" and _version(context.rank_python.version) < MIN_PYTHON:
        found.append(
            f"workloads.runtime needs Python 3.11; {context.rank_python.path} is {context.rank_python.version}"
        )
    return tuple(found)
