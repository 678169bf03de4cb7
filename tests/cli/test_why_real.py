"""`orch why` of a run that real shims carried, and whose rank was really killed."""

from __future__ import annotations

import signal
import sys

import pytest

from orchestrator.runs.source import LocalSource
from orchestrator.runs.why import Level, tell
from orchestrator.runs.whyfacts import gather
from orchestrator.runs.whyscreen import screen
from tests.supervisor.direct import Desk
from tests.supervisor.ranks import BEATER
from tests.supervisor.runs import make_run
from workloads.contract.rundir import OrchHome

STEPS = """
import json, os, time
k, a, run = int(os.environ["RANK"]), int(os.environ["ORCH_ATTEMPT"]), os.environ["ORCH_RUN_DIR"]
print("hello from", k, flush=True)
with open(f"{run}/heartbeat_rank{k}.jsonl", "a") as f:
    for step in range(10_000):
        row = dict(v=1, seq=step, ts=time.time(), msg="progress", rank=k, world_size=2, attempt=a, step=step, steps=9,
                   loss=2.5, step_time_s=0.05)
        f.write(json.dumps(row) + "\\n")
        f.flush()
        time.sleep(0.05)
"""


def test_a_killed_rank_is_told_and_the_restart(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    desk = Desk(make_run(OrchHome(tmp_path / "home"), [sys.executable, "-c", STEPS], world=2))
    try:
        desk.until("running", 1)
        desk.turn(lambda: (desk.status.get("step") or 0) > 2)
        desk.pid(1, 1).signal(signal.SIGKILL)
        desk.until("running", 2)
        desk.turn(lambda: desk.status.get("step") is not None)
        source = LocalSource(OrchHome(tmp_path / "home"), desk.run)
        story = tell(gather(source))
        assert story.level is Level.WELL and "restarted once, because rank 1 was killed by signal 9" in story.verdict
        desk.pid(2, 1).signal(signal.SIGSTOP)
        desk.turn(lambda: desk.pid(2, 1).state() == "T")
        facts = gather(source)
        frozen = tell(facts)
        assert frozen.level is Level.SICK and frozen.sick is not None and frozen.sick.rank == 1
        assert frozen.command == f"kill -CONT {desk.pid(2, 1).pid}"
        desk.run.halt.write_text("enough")
        desk.pid(2, 0).signal(signal.SIGKILL)
        desk.pid(2, 1).signal(signal.SIGKILL)
        desk.until("halted")
        halted = tell(gather(source))
        text = screen(halted, source.view().now)
        assert halted.level is Level.HALTED and "halted by a file: enough" in halted.verdict
        assert halted.command.endswith(f"resume {desk.run.run_id}") and "saved by itself" in text
        assert "rank-exit: rank 1 was killed by signal 9 (SIGKILL) at step" in text
    finally:
        desk.close()


HANG = (
    BEATER
    + """
def reduce_with_the_others():
    wait_for_ever()
def next_batch():
    wait_for_ever()
for n in range(12):
    step(n)
if attempt > 1:
    while True:
        step(n)
        n += 1
reduce_with_the_others() if rank != 1 else next_batch()
"""
)


@pytest.mark.long
def test_a_hang_names_the_odd_rank_with_its_stack_and_then_the_restart(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    home = OrchHome(tmp_path / "home")
    health = {"rules": {"no_step": {"limit": 2.0, "act_limit": 30.0}}}
    desk = Desk(make_run(home, [sys.executable, "-c", HANG], world=3, kind="train", health=health))
    source = LocalSource(home, desk.run)
    try:
        desk.until("running", 1)
        desk.speed = 12.0
        desk.turn(lambda: bool(desk.events("dump")), 60.0)
        story = tell(gather(source))
        assert story.level is Level.SICK and story.sick is not None and story.sick.rank == 1
        text = screen(story, source.view().now)
        assert "rank 1 is the odd one of the dump" in text and "in next_batch" in text
        assert "no_step [note, dump]: rank" in text and "type now    nothing: the stacks are on disk" in text
        desk.until("running", 2, 60.0)
        desk.speed = 1.0
        desk.turn(lambda: desk.status.get("step") is not None)
        after = tell(gather(source))
        assert after.level is Level.WELL and "restarted once, because rank" in after.verdict
        assert "has made no step for" in after.verdict and any("its ranks are ended" in t for _, t in after.happened)
    finally:
        desk.close()


def test_a_run_that_fails_by_itself_shows_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    desk = Desk(
        make_run(OrchHome(tmp_path / "home"), [sys.executable, "-c", "print('boom \\x1b[2J'); raise SystemExit(3)"])
    )
    try:
        desk.until("failed")
        source = LocalSource(OrchHome(tmp_path / "home"), desk.run)
        text = screen(tell(gather(source)), source.view().now)
        assert "it has failed: rank 0 ended with exit code 3" in text and "    | boom \\x1b[2J" in text
        assert f"orch logs {desk.run.run_id} --rank 0" in text and "\x1b" not in text
    finally:
        desk.close()
