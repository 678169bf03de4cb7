"""Parity as a job, and as what another job may require. Pure but for asking one pod for its verdicts.

A verdict is kept on the pod (`$ORCH_HOME/parity` there): GPU, driver and packages are the pod's, so every operator that
reaches it finds the same answer. It is for one hash of kernels/, and so old as soon as a kernel changes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.jobs.interpreter import Interpreter
from orchestrator.jobs.jobfile import LoadedJob, made_job
from orchestrator.jobs.words import DEVICES, check_choice, check_suites, option
from pods.facts import PodFacts
from pods.pod import Pod
from workloads.contract.codehash import code_hash
from workloads.contract.config.job import SUITES
from workloads.contract.errors import ConflictError, RemoteError

INTERPRETER, NO_DRIVER = "interpreter", "-"  # as `workloads.parity.place` writes them
GO = "go"
MAX_VERDICTS = 4096
Verdicts = Sequence[Mapping[str, Any]]


def parity_job(
    suites: Sequence[str],
    *,
    pod: str | None = None,
    full: bool = False,
    only: str | None = None,
    device: str | None = None,
    seed: int = 0,
    python: str | None = None,
) -> LoadedJob:
    """The job of `orch parity`. UsageError for a suite or device that there is not; SpecErrors as for a job file."""
    check_suites("orch parity", suites, SUITES, "E-PARITY-010")
    check_choice("orch parity", "--device", device, DEVICES)
    asked: dict[str, Any] = {"suites": list(dict.fromkeys(suites)) or list(SUITES), "full": full, "seed": seed}
    asked |= {k: v for k, v in (("only", only), ("device", device)) if v is not None}
    data = {"name": "parity", "kind": "parity", "parity": asked, **({"python": python} if python else {})}
    words = ["orch", "parity", *suites, *(["--full"] if full else []), *option("--only", only)]
    words += [*option("--device", device), *(option("--seed", str(seed)) if seed else [])]
    words += [*option("--pod", pod), *option("--python", python)]
    return made_job(data, shlex.join(words), name=None, pods=[pod] if pod else [])


def verdicts_on(pod: Pod) -> Verdicts:
    """Every verdict that the pod has kept."""
    told = pod.call("parity.verdicts", {}).fields.get("verdicts")
    if not isinstance(told, list) or len(told) > MAX_VERDICTS or not all(isinstance(v, dict) for v in told):
        raise RemoteError("E-PARITY-011", f"pod {pod.name} answered with verdicts that are none")
    return told


def prove(pod: str, *, command: str, facts: PodFacts, python: Interpreter, gpus: int, verdicts: Verdicts) -> str:
    """In words, by which runs the kernels were found right. ConflictError when they were not, or nobody looked.

    `command`: what has somebody look.
    """
    code = kernels_hash()
    devices = sorted({(g.name, g.driver or "unknown") for g in facts.gpus}) if gpus else [(INTERPRETER, NO_DRIVER)]
    told = []
    for gpu, driver in devices:
        about = {"gpu": gpu, "driver": driver, "torch": python.torch_version, "triton": python.triton_version}
        for suite in SUITES:
            found = [v for v in verdicts if _is_about(v, {**about, "code": code, "suite": suite})]
            bad = [v for v in found if v.get("verdict") != GO]
            if bad or not found:
                raise _refusal(pod, command, f"{gpu}, driver {driver}", python, suite, bad, code)
            told.append(f"{suite} ({found[0].get('cells')} cells, run {found[0].get('run')})")
    return f"the kernels were found right here: {', '.join(told)}"


def kernels_hash() -> str:
    """Of the kernels that a launch from here brings to a pod."""
    from pods.tree import source_root

    return code_hash(source_root() / "kernels")


def _is_about(verdict: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    return all(value is not None and verdict.get(key) == value for key, value in about.items())


def _refusal(
    pod: str, command: str, device: str, python: Interpreter, suite: str, bad: Verdicts, code: str
) -> ConflictError:
    if bad:
        what = f"the job requires parity, and suite {suite} is no-go on pod {pod}"
        fix = f"orch parity --run {bad[0].get('run')}   (which cells; once they are mended: {command})"
    else:
        what = f"the job requires parity, and nobody has judged suite {suite} on pod {pod} with this code"
        fix = command
    versions = f"torch {python.torch_version or '?'}, triton {python.triton_version or '?'}"
    return ConflictError(
        "E-PLAN-015", what, where=python.path, value=f"{device}, {versions}, kernels {code}",
        expected="go, of every suite: " + ", ".join(SUITES), fix=fix,
    )  # fmt: skip
