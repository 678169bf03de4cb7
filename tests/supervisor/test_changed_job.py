"""A resume that changes the job: its supervisor, its ranks, its guard and its readers all go by the new one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from orchestrator.runs.views import snapshot
from pods.keeper.guardrules import Limits
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run, request
from workloads.contract.files import read_json
from workloads.contract.jobchanges import job_of
from workloads.contract.rundir import OrchHome, RunDir

SHOW = "import os; print('told:', os.environ.get('COLOUR'), os.environ.get('ORCH_ALLOW_CONFIG_CHANGE'), flush=True)"
LR = {"train.lr": {"was": 1e-3, "is": 1e-4}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    argv = [sys.executable, "-c", f"{SHOW}; raise SystemExit(5)"]
    return make_run(OrchHome(tmp_path / "home"), argv, restart={"max": 0, "backoff_s": [0]})


def told(run: RunDir) -> list[str]:
    return [line for line in run.rank_log(0).read_text().splitlines() if line.startswith("told:")]


def test_every_attempt_has_the_job_that_resumes_made_of_it(run: RunDir) -> None:
    desk = Desk(run)
    try:
        desk.until("failed")
        changes = LR | {
            "env.COLOUR": {"is": "red"}, "restart.max": {"was": 0, "is": 7}, "halt.grace_s": {"was": 600.0, "is": 5.0},
            "health.guard.mode": {"is": "off"},
        }  # fmt: skip
        request(run, "resume", "one", args={"changes": changes, "allow": ["train.lr"]}, why="too high")
        desk.until("failed", 2)
        spec = desk.engine._acting.spec
        assert (spec.restart_max, spec.clocks.term_s) == (7, 5.0)
        desk.again()  # a supervisor that came back knows it too
        assert desk.engine._acting.spec == spec and desk.engine.look(time.monotonic()).limits.restart_max == 7
        request(run, "resume", "two")  # and so does the next attempt, with what was allowed for it
        desk.until("failed", 3)
        request(run, "resume", "three", args={"changes": {"env.COLOUR": {"was": "red"}}})
        desk.until("failed", 4)
    finally:
        desk.close()
    assert told(run) == [
        "told: None None", "told: red train.lr", "told: red train.lr", "told: None train.lr",
    ]  # fmt: skip
    assert not run.attempt_job(1).exists() and read_json(run.run_json)["job"]["restart"]["max"] == 0
    assert read_json(run.attempt_job(2))["changes"] == changes
    assert [job_of(run, n)["restart"]["max"] for n in (1, 2, 3, 4)] == [0, 7, 7, 7]
    assert [job_of(run, n).get("env", {}) for n in (2, 3, 4)] == [{"COLOUR": "red"}] * 2 + [{}]
    assert Limits.of({"job": job_of(run, 2)}).mode == "off"
    assert snapshot(run, time.time()).info["job"]["train"]["lr"] == 1e-4
    resumed = [e for e in desk.events("state") if e["to"] == "resuming"]
    assert "train.lr 0.001 -> 0.0001" in str(resumed[0]["why"]) and str(resumed[0]["why"]).endswith(": too high")
    assert [r["data"].get("changes") for r in resumed][:2] == [changes, None]  # type: ignore[attr-defined]


ODD = (
    ({"restart.max": {"is": "many"}}, "cannot be read"), ({"restart": {"is": 5}}, "cannot be read"),
    ([1], "not changes"), ({"a..b": {"is": 1}}, "not changes"),
)  # fmt: skip


def test_changes_after_which_the_job_is_none_are_refused_and_nothing_starts(run: RunDir) -> None:
    desk = Desk(run)
    try:
        desk.until("failed")
        for n, (odd, why) in enumerate(ODD):
            path = request(run, "resume", f"odd{n}", args={"changes": odd})
            desk.turn(run.ack_of(path).exists)
            ack = read_json(run.ack_of(path))
            assert not ack["ok"] and why in ack["why"]
        desk.tick()
    finally:
        desk.close()
    assert desk.status["attempt"] == 1 and desk.status["state"] == "failed"
