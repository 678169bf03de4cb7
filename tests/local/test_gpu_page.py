"""`orch gpu` on this machine, from the command to the page: a real Ray, a real shim, whatever this machine has."""

from __future__ import annotations

import pytest

from pods.facts import gpus_of
from pods.transport.local import LocalTransport
from tests.local.conftest import Orch

pytestmark = pytest.mark.ray


@pytest.mark.long
def test_what_this_machine_is_and_does(orch: Orch) -> None:
    gpus, _ = gpus_of(LocalTransport())
    process = orch.popen("gpu")
    out, err = process.communicate(timeout=600)
    run = next(p for p in orch.home.runs.glob("gpu-*") if p.name in out).name
    if not gpus:
        assert process.returncode == 1 and "no gpu: this pod has none" in out and "GFLOP/s" in out, out + err
        told = orch.json("gpu", "--run", run, code=1)
        assert (told["verdict"], told["state"], len(told["cpu"])) == ("no gpu", "succeeded", 3)
        return
    assert process.returncode in (0, 1) and f"{gpus[0].name}, driver" in out and "bf16 matmul" in out, out + err
    told = orch.json("gpu", "--run", run, code=process.returncode)
    assert len(told["gpus"]) == len(gpus) and told["gpus"][0]["load"]["sm_mhz"] > 0


@pytest.mark.long
@pytest.mark.proof
def test_steps_and_talks_are_measured_and_a_benchmark_of_them_is_no_page(orch: Orch) -> None:
    told = orch.json("bench", "train-step", "comm", "--device", "cpu", "--quick")
    assert (told["verdict"], told["cases"]) == ("go", 4)
    assert {r["unit"] for r in told["rows"]} == {"tokens/s", "GB/s"} and all(r["value"] > 0 for r in told["rows"])
    process = orch.popen("gpu", "--run", told["run"])
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2 and "error[E-GPU-002]" in err and f"fix:   orch bench --run {told['run']}" in err, (
        err
    )
