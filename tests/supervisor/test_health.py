"""Sick ranks under the engine: real shims, real dumps, ranks that stall, freeze and tell NaN. Limits are small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.runs.report import runs_table
from orchestrator.runs.views import snapshot
from orchestrator.supervisor.actor import TICK_S
from tests.supervisor.direct import Desk
from tests.supervisor.ranks import BEATER, SAVED
from tests.supervisor.runs import ROOT, make_run
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome

Make = Callable[..., Desk]
FAST = 12.0
STALL = {"rules": {"no_step": {"limit": 2.0, "act_limit": 6.0}}}
STALLS_ONCE = (
    BEATER
    + SAVED
    + """
for n in range(first, first + 8):
    step(n)
    if rank == 0:
        saved.write_text(str(n))
if attempt > 1:
    sys.exit(0)
def stuck_in_the_loader():
    wait_for_ever()
stuck_in_the_loader()
"""
)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    home = OrchHome(tmp_path / "home")
    desks: list[Desk] = []

    def build(code: str, **changes: object) -> Desk:
        argv = [sys.executable, "-c", code]
        desks.append(Desk(make_run(home, argv, **{"kind": "train", **changes})))  # type: ignore[arg-type]
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


def found(desk: Desk, rung: str) -> list[dict[str, object]]:
    return [e for e in desk.events("health") if e["data"]["rung"] == rung]  # type: ignore[index]


def run_fast(desk: Desk, until: Callable[[], bool]) -> None:
    """The ranks are up: from here on their limits pass sooner."""
    desk.until("running", 1)
    desk.speed = FAST
    desk.turn(until, 60.0)
    desk.speed = 1.0


def test_a_stalled_rank_is_dumped_ended_and_goes_on_from_its_step(make: Make) -> None:
    desk = make(STALLS_ONCE, health=STALL)
    run_fast(desk, lambda: bool(desk.events("stop")))
    status = desk.until("succeeded", 2)
    note, ended, stop = found(desk, "note")[0], found(desk, "restart")[0], desk.events("stop")[0]
    assert str(note["why"]).startswith("rank 0 has made no step for") and note["data"]["unit"] == "s"  # type: ignore[index]
    (dump,) = desk.events("dump")
    assert note["seq"] < dump["seq"] < ended["seq"] < stop["seq"]  # type: ignore[operator]
    assert str(dump["why"]).startswith("rank 0 in wait_for_ever at") and dump["data"]["groups"][0]["ranks"] == [0]  # type: ignore[index]
    name = next(n for n in dump["data"]["files"] if n.startswith("watchdog_stackdump_rank0_"))  # type: ignore[index]
    died = float(desk.rank(1, 0)["ended"])  # type: ignore[arg-type]
    stacks = desk.run.stackdumps / name
    assert "stuck_in_the_loader" in stacks.read_text() and dump["ts"] < died  # type: ignore[operator]
    moved = [e for e in desk.events("state") if e["to"] == "resuming"]
    assert moved[0]["why"] == f"{ended['why']}; restarting from the newest checkpoint now (1 of 3)"
    assert not desk.events("rank-exit") and status["restarts"] == 1
    steps = [json.loads(line) for line in desk.run.heartbeat(0).read_text().splitlines()]
    assert next(b["step"] for b in steps if b["attempt"] == 2) == 7


HANGS_TWICE = (
    BEATER
    + """
if attempt > 1:
    sys.exit(0)
for n in range(8):
    step(n)
while not (run / 'go').exists():
    time.sleep(0.02)
step(8)
wait_for_ever()
"""
)


def test_a_rank_that_went_on_before_it_was_ended_is_ended_when_it_hangs_for_good(make: Make) -> None:
    desk = make(HANGS_TWICE, health=STALL)
    desk.gang.keeper = False  # the end waits for a dump that nobody makes
    run_fast(desk, lambda: bool(found(desk, "restart")))
    desk.speed = 0.0
    (desk.run.path / "go").touch()
    desk.turn(lambda: desk.engine._figures.step == 8)
    desk.speed = FAST
    desk.turn(lambda: bool(desk.events("health-clear")))
    assert not desk.events("stop")
    desk.turn(lambda: bool(desk.events("stop")), 60.0)
    assert len(found(desk, "restart")) == 2
    desk.speed = 1.0
    desk.until("succeeded", 2)


def test_a_frozen_rank_is_named_and_shown_in_the_status(make: Make) -> None:
    desk = make(BEATER + "step(1)\nwait_for_ever()", health={"rules": {"stopped": {"limit": 2.0}}})
    desk.until("running", 1)
    rank = desk.pid(1, 0)
    rank.signal(signal.SIGSTOP)
    desk.speed = FAST
    desk.turn(lambda: bool(desk.events("dump")), 60.0)
    (note,) = found(desk, "note")
    assert note["data"]["rule"] == "stopped" and str(desk.status["reason"]).startswith(str(note["why"]))  # type: ignore[index]
    assert str(note["why"]) in runs_table([snapshot(desk.run, time.time())])
    rank.signal(signal.SIGCONT)
    desk.turn(lambda: bool(desk.events("health-clear")), 60.0)
    desk.turn(lambda: desk.status["reason"] == "the first step was made")
    assert rank.alive() and not desk.events("stop") and desk.status["state"] == "running"
    assert "the first step" not in runs_table([snapshot(desk.run, time.time())])


def test_nan_is_halted_with_its_anomaly_type(make: Make) -> None:
    code = BEATER + "step(0)\nfor n in range(1, 10**6): step(n, loss=math.nan)"
    desk = make(code, health={"rules": {"nan": {"in_a_row": 2}}}, grace_s=0.5)
    run_fast(desk, lambda: desk.status["state"] == "halting")
    status = desk.until("halted")
    assert desk.run.anomaly_type.read_text() == "nan\n" and json.loads(desk.run.halt.read_text())["who"] == "watchdog"
    (halt,) = desk.events("halt")
    assert "halted by watchdog: rank 0" in str(status["reason"]) and halt["seq"] > desk.events("dump")[0]["seq"]  # type: ignore[operator]
    assert not desk.events("stop") and desk.status["attempt"] == 1


@pytest.mark.long
def test_a_phase_that_never_ends_is_given_up_where_the_job_says_so(make: Make) -> None:
    phase = {"limits": {"loading": 2.0}, "act_factor": 1.5, "ladder": ["note", "dump", "give_up"]}
    desk = make(BEATER + "step(0)\nbeat('loading')\nwait_for_ever()", health={"rules": {"phase_over": phase}})
    run_fast(desk, lambda: bool(desk.events("stop")))
    status = desk.until("failed")
    assert "rank 0 has been loading for" in str(status["reason"]) and status["attempt"] == 1
    assert desk.events("state")[-1]["data"] == {"rank": 0, "rule": "phase_over"}


@pytest.mark.long
def test_observe_tells_and_ends_nothing(make: Make) -> None:
    desk = make(STALLS_ONCE, health={"mode": "observe", **STALL})
    run_fast(desk, lambda: bool(found(desk, "restart")))
    rank = desk.pid(1, 0)
    desk.speed = FAST
    began = time.monotonic()
    desk.turn(lambda: time.monotonic() - began > 1.5)
    assert found(desk, "restart")[0]["data"]["suppressed"] is True  # type: ignore[index]
    assert rank.alive() and not desk.events("stop") and desk.events("dump")


def test_a_supervisor_that_is_killed_at_any_point_goes_on_and_asks_for_no_second_dump(make: Make) -> None:
    desk = make(STALLS_ONCE, health=STALL)
    desk.gang.keeper = False
    run_fast(desk, lambda: bool(found(desk, "dump")))
    desk.again()  # between the finding and its request
    desk.gang.keeper = False
    desk.turn(lambda: len(list(desk.run.requests.iterdir())) == 1)
    desk.again()  # between the request and its answer
    desk.speed = FAST
    desk.turn(lambda: bool(found(desk, "restart")), 60.0)
    desk.again()  # between the finding and the end
    desk.speed = 1.0
    desk.turn(lambda: bool(desk.events("stop")))
    desk.run.stop_order(1).unlink(missing_ok=True)
    if desk.pid(1, 0).alive():
        desk.again()  # between the event and the order
    status = desk.until("succeeded", 2)
    assert len([p for p in desk.run.requests.iterdir() if "ack" not in p.name]) == 1
    assert len(desk.events("stop")) == 1 and len(desk.events("dump")) == 1 and status["restarts"] == 1
    (ended,) = found(desk, "restart")
    moved = next(e for e in desk.events("state") if e["to"] == "resuming")
    assert str(moved["why"]).startswith(str(ended["why"]))


class Killed(BaseException):
    """The supervisor is gone at this very point."""


def kill_at(desk: Desk, number: int, *, after: bool) -> None:
    """The action of this number is the last thing that this supervisor does, or what it no longer does."""
    carry_out, count = desk.engine._acting.carry_out, iter(range(10**6))

    def act(*args: object) -> bool:
        mine = next(count) == number
        if mine and not after:
            raise Killed
        left = carry_out(*args)  # type: ignore[arg-type]
        if mine:
            raise Killed
        return left

    desk.engine._acting.carry_out = act  # type: ignore[method-assign]


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_any_action_it_ends_the_same(make: Make, after: bool) -> None:
    for number in range(30):
        desk = make(STALLS_ONCE, health=STALL)
        kill_at(desk, number, after=after)
        try:
            run_fast(desk, lambda desk=desk: bool(desk.events("stop")))  # type: ignore[misc]
            status = desk.until("succeeded", 2)
        except Killed:
            desk.again()
            desk.speed = 1.0
            saved = desk.run.checkpoints / "saved"
            desk.turn(lambda saved=saved: saved.exists() and int(saved.read_text() or 0) >= 7)  # type: ignore[misc]
            desk.speed = FAST
            desk.turn(lambda desk=desk: bool(desk.events("stop")), 90.0)  # type: ignore[misc]
            desk.speed = 1.0
            status = desk.until("succeeded", 2)
        else:
            break
        asked = [p for p in desk.run.requests.iterdir() if "ack" not in p.name]
        told = (len(asked), len(desk.events("stop")), len(desk.events("dump")), status["restarts"])
        assert told == (1, 1, 1, 1), (number, told)
        moved = next(e for e in desk.events("state") if e["to"] == "resuming")
        assert str(moved["why"]).startswith("rank 0 has made no step for"), number
    else:
        pytest.fail("it never got to its end undisturbed")
    assert number > 10


@pytest.mark.long
def test_a_dump_that_nobody_answers_delays_the_end_and_does_not_prevent_it(make: Make) -> None:
    desk = make(STALLS_ONCE, health=STALL)
    desk.gang.keeper = False
    run_fast(desk, lambda: bool(desk.events("stop")))
    desk.until("succeeded", 2)
    assert not desk.events("dump")


@pytest.mark.long
def test_an_older_attempt_may_not_commit_after_a_restart(make: Make) -> None:
    desk = make(BEATER + "step(0)\nwait_for_ever()")
    desk.until("running", 1)
    desk.pid(1, 0).signal(signal.SIGKILL)
    desk.until("running", 2)
    code = "from workloads.runtime.fence import *; from workloads.runtime.rankenv import *; check_epoch(RankEnv.read())"
    order = json.loads(desk.run.rank_order(1, 0).read_text())
    for epoch, stale in ((1, True), (2, False)):
        env = {**order["env"], "ORCH_EPOCH": str(epoch), "PYTHONPATH": str(ROOT)}
        got = subprocess.run([sys.executable, "-s", "-c", code], env=env, capture_output=True, text=True, check=False)
        assert ("StaleEpochError: attempt 2 owns the run" in got.stderr) is stale and (got.returncode != 0) is stale


def test_a_run_directory_that_goes_away_ends_nothing_and_is_said_once(make: Make) -> None:
    desk = make(BEATER + "step(0)\nwait_for_ever()", health={"rules": {"no_step": {"limit": 1.0, "act_limit": 1.0}}})
    desk.until("running", 1)
    rank, hidden = desk.pid(1, 0), desk.run.path.with_name(".hidden")
    desk.run.path.rename(hidden)
    desk.speed = FAST
    for _ in range(20):
        desk.tick()
        time.sleep(0.05)
    assert rank.alive() and not desk.run.path.exists()
    hidden.rename(desk.run.path)
    desk.speed = 1.0
    desk.turn(lambda: len(desk.events("note")) >= 2)
    notes = [str(e["why"]) for e in desk.events("note")]
    assert len(notes) == 2 and "is not there" in notes[0] and "can be used again" in notes[1]
    assert rank.alive() and desk.status["state"] == "running" and desk.gang.spawned == 1 and not desk.events("stop")
    rank.signal(signal.SIGKILL)
    desk.until("running", 2)


@pytest.mark.long
def test_a_run_directory_that_takes_no_writes_ends_nothing(make: Make) -> None:
    desk = make(STALLS_ONCE, health=STALL)
    desk.until("running", 1)
    rank = desk.pid(1, 0)
    desk.run.status.unlink()
    desk.run.status.mkdir()  # root writes everywhere; over a directory it does not
    began, desk.speed = time.monotonic(), FAST
    desk.turn(lambda: time.monotonic() - began > 2.5)
    assert rank.alive() and not found(desk, "restart")
    (note,) = [e for e in desk.events("note") if "takes no writes" in str(e["why"])]
    desk.run.status.rmdir()
    desk.turn(lambda: bool(desk.events("stop")), 60.0)
    assert any("can be used again" in str(e["why"]) and e["seq"] > note["seq"] for e in desk.events("note"))  # type: ignore[operator]


def test_what_the_guard_writes_is_told_once(make: Make) -> None:
    desk = make(BEATER + "step(0)\nwait_for_ever()")
    desk.until("running", 1)
    row = {"v": 1, "ts": 1.0, "rule": "gpu_memory", "why": "pid 7 holds\x1b 9 MiB", "rank": 0, "pid": 7, "did": "halt"}
    with desk.run.guard_log.open("wb") as f:
        f.write(b"\xff garbage\n" + json.dumps(row).encode() + b'\n{"torn":')
    desk.turn(lambda: bool(desk.events("guard")))
    desk.again()
    desk.turn(lambda: desk.engine._over_since is None)
    for _ in range(3):
        desk.tick()
    (told,) = desk.events("guard")
    assert told["why"] == "pid 7 holds\\x1b 9 MiB"
    assert told["data"].items() >= {"rule": "gpu_memory", "rank": 0, "pid": 7, "did": "halt"}.items()  # type: ignore[attr-defined]


def test_a_crash_loop_ends_pointing_at_the_lines_of_the_rank_that_died_first(make: Make) -> None:
    code = "import os, signal; print('last words', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    desk = make(code, restart={"max": 1, "backoff_s": [0]}, world=1)
    status = desk.until("failed")
    where = desk.events("state")[-1]["data"]
    told = next(e for e in desk.events("rank-exit") if e["seq"] == where["rank_exit"])  # type: ignore[index]
    assert where["rank"] == 0 and told["attempt"] == status["attempt"] == 2  # type: ignore[index]
    assert told["data"]["lines"].count("last words") == 2 and "SIGSEGV" in str(status["reason"])  # type: ignore[index]


def test_a_supervisor_that_slept_takes_no_healthy_rank_for_a_stalled_one(make: Make) -> None:
    desk = make(
        BEATER + "for n in range(10**6): step(n)", health={"rules": {"no_step": {"limit": 8.0, "act_limit": 8.0}}}
    )
    desk.until("running", 1)
    for _ in range(3):
        desk._now += 600.0
        before = desk.status["step"]
        desk.turn(lambda before=before: desk.status["step"] != before)  # type: ignore[misc]
    assert not desk.events("health") and desk.status["state"] == "running"


def test_an_anomaly_type_of_others_is_told_once_and_ends_nothing_alone(make: Make) -> None:
    desk = make(BEATER + "step(0)\nwait_for_ever()", grace_s=0.5)
    desk.until("running", 1)
    desk.run.anomaly_type.write_text("gate\x1b_collapse\n")
    desk.speed = FAST
    desk.turn(lambda: bool(desk.events("note")))
    desk.speed = 1.0
    desk.tick()
    (note,) = desk.events("note")
    assert "says gate\\x1b_collapse" in str(note["why"]) and desk.status["state"] == "running"
    desk.run.halt.write_text("by the other watchdog")
    assert "halted by a file: by the other watchdog (gate\\x1b_collapse)" in str(desk.until("halted")["reason"])


@pytest.mark.long
def test_figures_of_the_watchdog(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank death seen within 2 s; dump on disk within 5 s of the verdict."""
    desk = make(BEATER + "step(0)\nwait_for_ever()", world=2)
    desk.until("running", 1)
    began = time.time()
    desk.pid(1, 1).signal(signal.SIGKILL)
    desk.turn(lambda: bool(desk.events("rank-exit")), every_s=TICK_S)
    seen_s = float(desk.events("rank-exit")[0]["ts"]) - began  # type: ignore[arg-type]
    sick = make(STALLS_ONCE, health=STALL, world=8)
    sick.until("running", 1)
    sick.turn(lambda: bool(sick.events("dump")), 60.0, every_s=TICK_S)
    dump = sick.events("dump")[0]["data"]
    with capsys.disabled():
        print(f"\nrank death seen after {seen_s:.2f} s; 8 ranks dumped {dump['after_s']:.2f} s after the verdict")  # type: ignore[index]
    assert seen_s <= 2.0 and dump["after_s"] <= 5.0  # type: ignore[index]


def test_a_pid_that_was_given_to_somebody_else_is_a_dead_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.health.facts import ProcessState
    from orchestrator.supervisor.observe import process_state

    me = ProcId.me()
    assert process_state(me) == ProcessState.RUNNING
    assert process_state(ProcId(me.pid, me.start_time - 1, me.boot_id)) == ProcessState.DEAD
    assert process_state(ProcId(me.pid, me.start_time, "another boot")) == ProcessState.DEAD
    child = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
    os.waitpid(child.pid, os.WUNTRACED)
    ident = ProcId.of(child.pid)
    assert ident is not None and process_state(ident) == ProcessState.STOPPED
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_state(ident) == ProcessState.DEAD  # a zombie
    child.wait()

    def denied(pid: int) -> None:
        raise PermissionError(pid)

    monkeypatch.setattr("workloads.contract.process.read_stat", denied)
    assert process_state(me) == ProcessState.UNKNOWN
