"""Ranks that live after the SIGKILL of a halt: swept without their shim, then named within 90 s of that kill."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.supervisor.actions import Action, Sweep, Tell, Transition, Verdict
from orchestrator.supervisor.decide import decide
from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.seen import GangSeen, GangState, Limits, RankPhase, RankSeen, Seen
from pods.remote import control
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run
from workloads.contract.haltfile import Halt
from workloads.contract.process import ProcId
from workloads.contract.records import HaltClocks, RankRecord
from workloads.contract.rundir import OrchHome
from workloads.contract.states import RunState

CLOCKS = HaltClocks(term_s=600.0, kill_s=630.0, now_term_s=10.0, now_kill_s=30.0)
LIMITS = Limits("train", 3, (0.0,), CLOCKS)


def rank(number: int, phase: RankPhase, **changes: object) -> RankSeen:
    record = RankRecord("r", 1, number, "pod-a", 900 + number, 1, "b", ["x"], 1.0, pid=700 + number, start_time=5)
    return RankSeen(number, "pod-a", phase, replace(record, **changes))  # type: ignore[arg-type]


def halting(ranks: tuple[RankSeen, ...], in_state_s: float, now_s: float | None = None) -> list[Action]:
    memory = Memory(state=RunState.HALTING, attempt=1, closed=False, halt="halted by me")
    halt = Halt(now_s is not None, "enough", "me", 1.0)
    return decide(Seen(memory, LIMITS, ranks, GangSeen(GangState.READY), in_state_s, halt=halt, now_s=now_s))


def test_before_its_clock_a_rank_is_left_to_its_shim() -> None:
    ranks = (rank(0, RankPhase.ALIVE), rank(1, RankPhase.ALIVE))
    assert halting(ranks, 635.0) == []
    assert halting(ranks, 35.0, now_s=35.0) == []


@pytest.mark.parametrize("in_state_s", [45.0, 120.0, 600.0])
def test_now_counts_from_the_moment_it_was_asked_for(in_state_s: float) -> None:
    ranks = (rank(0, RankPhase.ALIVE),)
    assert halting(ranks, in_state_s, now_s=0.0) == []
    assert halting(ranks, in_state_s + 35.0, now_s=35.0) == []


@pytest.mark.parametrize(("in_state_s", "now_s"), [(645.0, None), (45.0, 45.0), (300.0, 45.0), (645.0, 20.0)])
def test_a_rank_that_lives_after_its_kill_is_swept(in_state_s: float, now_s: float | None) -> None:
    ranks = (rank(0, RankPhase.ENDED, ended=5.0, exit_code=75), rank(1, RankPhase.ALIVE))
    assert halting(ranks, in_state_s, now_s) == [Sweep((701,))]


def test_what_nothing_ends_is_named_within_90_s_and_the_run_is_halted() -> None:
    ranks = (rank(0, RankPhase.ALIVE), rank(1, RankPhase.CLOSING))
    verdict, move = halting(ranks, 630.0 + 80.0)
    assert verdict == Verdict((700, 901))
    assert isinstance(move, Transition) and move.to is RunState.HALTED
    named = "rank 0: pid 700, rank 1: its shim 901"
    assert move.why == f"halted by me; these stayed 80 s after their SIGKILL (limit 75 s): {named}"


def test_a_rank_that_cannot_be_seen_is_neither_swept_nor_said_to_be_over() -> None:
    ranks = (rank(0, RankPhase.ALIVE), rank(1, RankPhase.UNKNOWN))
    assert halting(ranks, 10_000.0) == []


def test_an_attempt_that_waits_for_the_living_says_for_whom() -> None:
    memory = Memory(state=RunState.RESUMING, attempt=1)
    ranks = (rank(0, RankPhase.ENDED, ended=5.0, exit_code=75), rank(1, RankPhase.ALIVE))
    told = decide(Seen(memory, LIMITS, ranks, GangSeen(GangState.READY), 70.0, busy={}, strays=None))
    assert told == [Tell("rank 1 of attempt 1 has not ended; waiting until it has")]


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
SAVES = """
import json, os, signal, time
def save(*_):
    time.sleep(5.0)  # longer than a sweep waits with its SIGKILL
    os._exit(75)
signal.signal(15, save)
row = dict(v=1, seq=0, ts=time.time(), msg='progress', rank=0, world_size=1, attempt=1, step=5)
open(os.environ['ORCH_RUN_DIR'] + '/heartbeat_rank0.jsonl', 'a').write(json.dumps(row) + '\\n')
while True: time.sleep(0.1)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Desk]]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    desks: list[Desk] = []

    def build(code: str) -> Desk:
        desks.append(Desk(make_run(OrchHome(tmp_path / "home"), [sys.executable, "-c", code])))
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


@pytest.mark.parametrize("gentle_s", [45.0, 120.0])
def test_a_halt_made_urgent_late_leaves_the_rank_the_time_that_now_promises(
    make: Callable[[str], Desk], gentle_s: float
) -> None:
    desk = make(SAVES)
    desk.turn(lambda: desk.status.get("step") == 5)
    control.halt(desk.run, now=False, why="", who="me")
    desk.until("halting")
    desk.engine.tick(time.monotonic())  # from here on it knows since when
    desk.engine._entered -= gentle_s
    control.halt(desk.run, now=True, why="", who="me")
    desk.until("halted")
    row = desk.rank(1, 0)
    assert (row["exit_code"], row["cause"]) == (75, "halt-term"), "it was let save"
    assert desk.events("verdict")[-1]["data"] == {"stayed": []}
    assert [e for e in desk.events("note") if "ending processes" in str(e["why"])] == []


def test_a_rank_whose_shim_hangs_is_ended_all_the_same(make: Callable[[str], Desk]) -> None:
    desk = make(DEAF)
    desk.until("running")
    row = desk.rank(1, 0)
    rank_id = desk.pid(1, 0)
    shim = ProcId(int(str(row["shim_pid"])), int(str(row["shim_start_time"])), str(row["boot_id"]))
    shim.signal(signal.SIGSTOP)
    try:
        desk.run.halt.touch()
        desk.until("halting")
        desk.engine.tick(time.monotonic())  # from here on it knows since when
        desk.engine._entered -= 645.0
        desk.turn(lambda: not rank_id.alive())
        desk.engine._entered -= 100.0
        assert f"rank 0: its shim {shim.pid}" in str(desk.until("halted")["reason"])
        assert desk.events("verdict")[-1]["data"] == {"stayed": [shim.pid]}
    finally:
        shim.signal(signal.SIGKILL)
