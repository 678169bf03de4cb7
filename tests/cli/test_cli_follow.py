"""Following and halting: what is said while it happens, how it ends, and that nothing waits for ever."""

from __future__ import annotations

import io
import threading
import time

from orchestrator.runs.follow import exit_code, follow, halt_limit_s, last_words, not_waited, wait_stopped
from orchestrator.runs.report import ending, ending_json
from orchestrator.runs.views import snapshot
from orchestrator.runs.waiting import Live, Waker
from workloads.contract.errors import RemoteError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def later(delay_s: float, *steps) -> None:
    def play() -> None:
        for step in steps:
            time.sleep(delay_s)
            step()

    threading.Thread(target=play, daemon=True).start()


def finish(made, state: str, reason: str = "") -> None:
    made.status(state, reason, supervisor=made.supervised())


def test_follow_to_success(make):
    made = make(world=1)
    made.record(0)
    made.run.training_csv.write_text("step,loss,lr\n1,5.5,0.1\n2,4.0,0.1\n40,1.25,0.1\n")
    now = time.time()

    def progress() -> None:
        finish(made, "running", "all ranks beat")
        made.event(1, "stage", data={"stage": "first step", "seconds": 2.0})
        made.event(2, "state", "all ranks beat", frm="starting", to="running")
        for i in range(5):
            made.beat(0, now - 5 + i, step=36 + i, steps=100, loss=1.25, toks_per_s=50_000.0)

    later(0.4, progress, lambda: finish(made, "succeeded", "all ranks are done"))
    out = Terminal()
    view = follow(made.run, Live(out))
    text = out.getvalue()
    assert exit_code(view) == 0
    assert "queued: submitted; the supervisor has not started yet" in text
    assert "first step" in text and "starting -> running" in text
    assert "\rrunning | step 40/100 | loss 1.25 | 50 000 tokens/s | eta 1 min 00 s" in text
    told = "\n".join(ending(view, 12.0))
    assert "succeeded after 12 s" in told and "5.5 -> 1.25" in told and "40/100" in told and "orch logs" in told
    assert ending_json(view, 12.0)["first_loss"] == "5.5"


def test_follow_to_failure_shows_the_first_dead_rank(make):
    made = make()
    finish(made, "failed", "rank 1 exited with 3")
    made.record(0, ended=200.0, signal=15)
    made.record(1, ended=100.0, exit_code=3)
    made.log(1, b"".join(b"line %d\n" % i for i in range(50)) + b"\x1b[31mboom\n")
    view = follow(made.run, Live(io.StringIO()))
    words = last_words(view)
    assert exit_code(view) == 1
    assert words[0] == "the last 30 lines of rank 1 (exit 3):"
    assert words[1] == "  | line 21" and words[30] == "  | \\x1b[31mboom"


def test_follow_to_halt(make):
    made = make()
    finish(made, "halted", "asked")
    assert exit_code(follow(made.run, Live(io.StringIO()))) == 75


def test_without_a_terminal_a_line_now_and_then(make):
    made = make(world=1)
    out = io.StringIO()
    live = Live(out)
    for now, text in ((0.0, "a"), (1.0, "b"), (9.9, "c"), (10.0, "d"), (30.0, "d"), (31.0, "e")):
        live.status(text, now)
    assert out.getvalue() == "a\nd\ne\n"
    assert snapshot(made.run, 0.0).state == "queued"


def test_halt_waits_and_tells_where_each_rank_stopped(make):
    made = make()
    made.record(0)
    made.record(1)
    finish(made, "running")

    def stop() -> None:
        for rank in (0, 1):
            made.halt_ack(rank, 120)
            made.record(rank, ended=time.time(), exit_code=75)
        finish(made, "halted", "dinner")

    later(0.5, stop)
    stopped = wait_stopped(made.run, Live(io.StringIO()), limit_s=20)
    assert stopped.confirmed and not stopped.timed_out
    lines = "\n".join(stopped.lines())
    assert "rank 1: exit 75, stopped at step 120, checkpoint step_00000120, sha256 abababababababab" in lines
    row = stopped.as_json()
    assert row["state"] == "halted" and row["ranks"][0]["hash"] == "ab" * 32


def test_halt_with_a_dead_supervisor_ends_when_the_ranks_have(make, monkeypatch):
    monkeypatch.setattr("orchestrator.runs.follow.UNCONFIRMED_S", 0.5)
    made = make()
    made.status("running", supervisor={**made.supervised(), "start_time": 1})
    for rank in (0, 1):
        made.record(rank, ended=time.time(), exit_code=75)
    stopped = wait_stopped(made.run, Live(io.StringIO()), limit_s=20)
    assert not stopped.confirmed and not stopped.timed_out
    assert "all ranks stopped; the supervisor will confirm" in stopped.lines()[0]


def test_halt_is_bounded(make):
    made = make()
    finish(made, "running")
    made.record(0)
    began = time.monotonic()
    stopped = wait_stopped(made.run, Live(io.StringIO()), limit_s=0.5)
    assert stopped.timed_out and time.monotonic() - began < 30
    assert "has not stopped in time" in stopped.lines()[0] and "rank 0: live (" in stopped.lines()[1]
    view = snapshot(made.run, time.time())
    assert halt_limit_s(view, now=True) == 120 and halt_limit_s(view, now=False) == 720


def test_halt_of_an_ended_run_says_so(make):
    made = make()
    finish(made, "succeeded")
    stopped = not_waited(made.run)
    assert stopped.confirmed and "had ended before: succeeded" in stopped.lines()[0]


def test_the_keeper_is_woken_at_most_every_ten_seconds(home):
    home.keeper_record.unlink()
    woken, said = [], []

    def wake(_) -> None:
        woken.append(1)
        raise RemoteError("E-KEEP-005", "the keeper did not start")

    waker = Waker(home, wake)
    for now in range(35):
        waker.look(False, float(now), said.append)
    assert len(woken) == 3, "at 10, 20 and 30 s; a launch has just poked it at 0"
    assert len(said) == 1
    waker.look(True, 99.0, said.append)
    assert len(woken) == 3
