"""`orch smoke` over the whole thread: a recipe made short, launched, judged; then a script of one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.local.conftest import Orch
from workloads.contract.manifest import committed

pytestmark = [pytest.mark.ray, pytest.mark.long]

SMALL = ("model.dim=32", "model.layers=1", "data.seq_len=32", "resources.ranks=1", "train.lr=0.01")
SCRIPT = Path(__file__).parents[1] / "adapters" / "scripts" / "plain_orch.py"


def test_a_recipe_made_short(orch: Orch) -> None:
    sets = [x for s in SMALL for x in ("--set", s)]
    found = json.loads(orch("smoke", "tiny", "--steps", "110", *sets, "--save-baseline", "base.json", "--json"))
    assert found["verdict"] == "go" and found["state"] == "succeeded" and found["rows"] == 110
    assert found["run"].startswith("smoke-tiny-") and found["saved"] == "base.json"
    run = orch.home.run(found["run"])
    assert committed(run) and any(run.tensorboard.glob("events.out.tfevents.*"))
    again = json.loads(orch("smoke", "--run", found["run"], "--min-tps", "1e12", "--json", code=1))
    assert {g["gate"]: g["verdict"] for g in again["gates"]}["tokens/s"] == "fail"
    saved = json.loads((orch.work / "base.json").read_text())
    assert saved["job"]["model.dim"] == 32 and saved["machine"]["device"] == "cpu" and saved["runs"][0]["rows"] == 110
    orch(
        "smoke", "tiny", "--steps", "110", "--compare-baseline", "base.json", code=6
    )  # another job: nothing is launched


def test_a_job_that_fails_is_no_go(orch: Orch) -> None:
    (orch.work / "job.yaml").write_text(
        f"name: bad\nkind: command\ncommand: [{sys.executable}, -c, 'raise SystemExit(3)']\n"
    )
    found = json.loads(orch("smoke", "job.yaml", "--json", code=1))
    assert found["verdict"] == "no-go" and found["why"].startswith("3 of 5 gates failed: run, rows, loss")


def test_a_script_of_ones_own(orch: Orch) -> None:
    argv = [sys.executable, str(SCRIPT), "130", "0"]
    (orch.work / "job.yaml").write_text(f"name: own\nkind: command\ncommand: {json.dumps(argv)}\n")
    found = json.loads(orch("smoke", "job.yaml", "--min-tps", "1", "--json"))
    assert found["verdict"] == "go" and found["rows"] == 130 and "torch" in found["versions"]
