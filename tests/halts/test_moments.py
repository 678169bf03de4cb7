"""A halt at every moment of a run's life: it is carried out there, nothing is started behind it, and it is answered."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.supervisor.seen import GangSeen, GangState
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run, request
from workloads.contract.files import read_json
from workloads.contract.process import marked
from workloads.contract.rundir import OrchHome, RunDir

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
SAVES = """
import json, os, time
d = os.environ["ORCH_RUN_DIR"]
row = dict(v=1, seq=0, ts=time.time(), msg="checkpointing", rank=0, world_size=1, attempt=1, step=7)
open(d + "/heartbeat_rank0.jsonl", "a").write(json.dumps(row) + chr(10))
while not os.path.exists(d + "/.HALT"):
    time.sleep(0.02)
time.sleep(2.0)
os.mkdir(d + "/checkpoints/step_00000007")
ack = dict(v=1, run=os.environ["ORCH_RUN_ID"], rank=0, attempt=1, step=7, ts=time.time(), checkpoint="step_00000007")
open(d + "/halt_ack_rank0.json", "w").write(json.dumps(ack))
raise SystemExit(75)
"""
Make = Callable[..., Desk]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    desks: list[Desk] = []

    def build(code: str, **changes: object) -> Desk:
        desks.append(Desk(make_run(OrchHome(tmp_path / "home"), [sys.executable, "-c", code], **changes)))
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


def halted(desk: Desk, words: str) -> None:
    ask = request(desk.run, "halt", "halt", why="enough")
    desk.run.halt.write_text("enough")
    status = desk.until("halted")
    assert words in str(status["reason"])
    desk.leave()
    answer = read_json(RunDir.ack_of(ask))
    assert answer["ok"] is True and marked(desk.run.run_id) == [] and desk.gang.released


def test_in_the_pause_before_a_restart(make: Make) -> None:
    desk = make(CRASH, restart={"max": 3, "backoff_s": [600]})
    desk.until("resuming")
    halted(desk, "(while resuming)")
    assert desk.status["attempt"] == 1


@pytest.mark.long
def test_while_starting(make: Make) -> None:
    desk = make(SLEEP, kind="train")  # no step was made: it is not yet running
    desk.until("starting")
    halted(desk, "halted by a file: enough")
    assert desk.events("verdict")[-1]["why"] == "clean"


@pytest.mark.long
def test_before_its_shims_are_up(make: Make) -> None:
    desk = make(SLEEP)
    desk.turn(lambda: desk.engine.journal.memory.state == "starting")
    halted(desk, "halted by a file: enough")


@pytest.mark.long
def test_while_its_pods_are_prepared(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = make(SLEEP)
    monkeypatch.setattr(desk.gang, "prepare", lambda: None)
    desk.gang.seen = GangSeen(GangState.PLACED)
    desk.until("preparing")
    halted(desk, "(while preparing)")
    assert desk.status["attempt"] == 0


@pytest.mark.long
def test_after_a_resume_and_before_its_start(make: Make) -> None:
    desk = make(SLEEP)
    desk.until("running")
    halted(desk, "halted by a file: enough")
    request(desk.run, "resume", "resu")
    desk.again()
    desk.gang.seen = GangSeen(GangState.PENDING, "needs 1 of 2 CPUs")
    desk.turn(lambda: desk.status.get("state") in ("resuming", "queued"))
    assert desk.run.archived_halt(1).exists() and not desk.run.halt.exists()
    desk.run.halt.write_text("no, not yet")
    assert "no, not yet (while" in str(desk.until("halted")["reason"])
    assert desk.status["attempt"] == 1


@pytest.mark.long
def test_while_a_rank_saves_it_is_left_to_finish(make: Make) -> None:
    desk = make(SAVES, kind="train", grace_s=60.0)
    desk.turn(lambda: desk.run.heartbeat(0).exists())
    began = time.monotonic()
    halted(desk, "halted by a file: enough")
    assert time.monotonic() - began > 1.5
    record = desk.rank(1, 0)
    assert (record["exit_code"], record["cause"]) == (75, "exited")
    assert desk.run.checkpoint(7).is_dir()


@pytest.mark.long
def test_a_supervisor_that_comes_back_after_the_ranks_were_halted_says_so(make: Make) -> None:
    desk = make(SLEEP, world=2)
    desk.until("running")
    desk.run.halt.write_text("nobody is there to see it")
    deadline = time.monotonic() + 60
    while marked(desk.run.run_id):  # the shims alone
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert desk.status["state"] == "running"
    desk.again()
    assert "nobody is there to see it" in str(desk.until("halted")["reason"])
    assert [e["why"] for e in desk.events("verdict")] == ["clean"] and desk.status["attempt"] == 1
