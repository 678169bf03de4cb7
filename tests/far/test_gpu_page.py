"""`orch gpu` on a pod over SSH: measured there, told here, and again from the copy that is here."""

from __future__ import annotations

import json

import pytest

from tests.far.conftest import POD, Far

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.proof]


def test_a_pod_is_measured_and_its_rows_are_brought_home(far: Far) -> None:
    process = far.orch.popen("gpu", POD, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 1), out + err
    told = json.loads(out)
    there, here = far.run_there(told["run"]), far.mirror(told["run"])
    assert here.bench_rows.read_bytes() == there.bench_rows.read_bytes()
    assert (told["pod"], told["command"], told["state"]) == (POD, f"orch gpu {POD}", "succeeded")
    assert told["gpus"] or [f["figure"] for f in told["cpu"]] == ["read", "copy", "fp32"]
    again = far.orch.json("gpu", "--run", told["run"], code=process.returncode)
    assert again == told

    suites = far.orch.json("bench", "train-step", "comm", "--pod", POD, "--device", "cpu", "--quick")
    assert (suites["verdict"], {r["suite"] for r in suites["rows"]}) == ("go", {"train-step", "comm"})
