"""A job that requires parity: launched where the kernels were found right, refused with what to type elsewhere."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.jobs.interpreter import look
from orchestrator.jobs.jobfile import load_job
from orchestrator.jobs.launch import prepare
from orchestrator.jobs.parity import kernels_hash, parity_job, prove
from pods.pod import LocalPod
from pods.transport.local import LocalTransport
from tests.jobs.test_plan import FACTS, PYTHON, gpus
from workloads.contract.config.job import SUITES
from workloads.contract.errors import ConflictError, UsageError
from workloads.contract.files import atomic_write_json
from workloads.contract.rundir import OrchHome

TOLD = dataclasses.replace(PYTHON, torch_version="2.13.0", triton_version="3.9.0")
BOX = dataclasses.replace(FACTS, gpus=tuple(dataclasses.replace(g, driver="570.1") for g in gpus(2)))
NO_GPU = ("interpreter", "-")
H200 = ("NVIDIA H200", "570.1")


def verdicts(device: tuple[str, str] = H200, suites: tuple[str, ...] = SUITES, **more: Any) -> list[dict[str, Any]]:
    gpu, driver = device
    base = {"gpu": gpu, "driver": driver, "torch": "2.13.0", "triton": "3.9.0", "code": kernels_hash(), "full": False}
    return [{**base, "suite": s, "verdict": "go", "cells": 51, "run": f"parity-{s}", "ts": 1.0, **more} for s in suites]


def proof(found: list[dict[str, Any]], **more: Any) -> str:
    args: dict[str, Any] = {"command": "orch parity --pod box", "facts": BOX, "python": TOLD, "gpus": 2, **more}
    return prove("box", verdicts=found, **args)


def test_where_the_kernels_were_found_right_it_is_said_by_which_runs() -> None:
    assert proof(verdicts()) == (
        "the kernels were found right here: kv-decode (51 cells, run parity-kv-decode), "
        "decoupled (51 cells, run parity-decoupled)"
    )
    assert proof(verdicts(NO_GPU), gpus=0, facts=FACTS)
    assert proof([*verdicts(), *verdicts(code="another", verdict="no-go"), *verdicts(("NVIDIA A100", "570.1"))])


@pytest.mark.parametrize(
    "change", [{"gpu": "NVIDIA H100"}, {"driver": "560"}, {"torch": "2.12.0"}, {"triton": "3.6.0"}, {"code": "old"}]
)
def test_a_verdict_about_anything_else_proves_nothing(change: dict[str, str]) -> None:
    with pytest.raises(ConflictError) as e:
        proof(verdicts(**change))
    assert e.value.code == "E-PLAN-015" and "nobody has judged suite kv-decode" in e.value.what
    assert e.value.fix == "orch parity --pod box"


def test_no_go_of_one_suite_or_one_matrix_refuses() -> None:
    with pytest.raises(ConflictError, match="nobody has judged suite decoupled"):
        proof(verdicts(suites=("kv-decode",)))
    with pytest.raises(ConflictError, match="suite decoupled is no-go") as e:
        proof([*verdicts(), *verdicts(suites=("decoupled",), full=True, verdict="no-go", run="parity-x")])
    assert str(e.value.fix).startswith("orch parity --run parity-x ")
    with pytest.raises(ConflictError):
        proof(
            verdicts(), facts=dataclasses.replace(BOX, gpus=(*BOX.gpus, dataclasses.replace(BOX.gpus[0], name="A100")))
        )
    with pytest.raises(ConflictError):  # the environment is not made yet: nobody knows what will be in it
        proof(verdicts(), python=PYTHON)


def test_a_launch_asks_the_home_where_the_run_will_lie(home: OrchHome, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: careful\nrequire: [parity]\nresources: {gpus_per_rank: 0}\n")
    loaded = load_job("job.yaml", cwd=tmp_path)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def plan() -> list[str]:
        return prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ=environ).plan.steps()

    with pytest.raises(ConflictError) as e:
        plan()
    assert e.value.fix == "orch parity" and e.value.exit_code == 6
    here = look(sys.executable)
    home.parity.mkdir()
    for i, row in enumerate(verdicts(NO_GPU, torch=here.torch_version, triton=here.triton_version)):
        atomic_write_json(home.parity / f"{i}.json", {"v": 1, **row})
    (home.parity / "torn.json").write_text("{")
    (home.parity / "newer.json").write_text('{"v": 2, "suite": "kv-decode", "verdict": "no-go"}')
    assert plan()[0].startswith("the kernels were found right here: kv-decode (51 cells")
    told = LocalPod(home, LocalTransport()).call("parity.verdicts", {}).fields["verdicts"]
    assert len(told) == 2 and set(told[0]) >= {"gpu", "suite", "verdict"}


def test_the_job_that_orch_parity_makes_and_the_command_that_made_it() -> None:
    loaded = parity_job(["decoupled"], pod="box", full=True, only="a b", device="cpu", seed=3, python="/v/bin/python")
    spec = loaded.spec
    assert (spec.kind, spec.pods, spec.python, spec.parity.suites) == (
        "parity",
        ["box"],
        "/v/bin/python",
        ["decoupled"],
    )
    assert (spec.parity.full, spec.parity.only, spec.parity.device, spec.parity.seed) == (True, "a b", "cpu", 3)
    words = "orch parity decoupled --full --only 'a b' --device cpu --seed 3 --pod box --python /v/bin/python"
    assert loaded.source == words
    plain = parity_job([])
    assert plain.source == "orch parity" and tuple(plain.spec.parity.suites) == SUITES
    with pytest.raises(UsageError) as e:
        parity_job(["decoupled", "kv-decod"])
    assert e.value.did_you_mean == "kv-decode" and e.value.fix == "orch parity decoupled kv-decode"
    with pytest.raises(UsageError, match="--device cannot be 'gpu'"):
        parity_job([], device="gpu")
