""".HALT, stop orders and their clocks on real ranks, with short clocks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pod.shimlab import Lab, until
from workloads.contract.files import append_line, atomic_write_json

DEAF = "trap '' TERM; echo up; while :; do sleep 0.1; done"
POLITE = "trap 'echo bye; exit 75' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def beat(lab: Lab, attempt: int = 1) -> None:
    row = {"v": 1, "seq": 0, "ts": time.time(), "msg": "progress", "rank": 0, "world_size": 1, "attempt": attempt}
    append_line(lab.run.heartbeat(0), row)


def test_a_plain_program_gets_sigterm_at_once(lab: Lab) -> None:
    lab.sh(POLITE, halt={"term_s": 600.0, "kill_s": 630.0})
    lab.says(b"up")
    start = time.monotonic()
    lab.run.halt.touch()
    row = lab.ended()
    assert (row["exit_code"], row["cause"]) == (75, "halt-term") and time.monotonic() - start < 60.0


def test_a_rank_that_beats_is_left_alone_until_its_clock(lab: Lab) -> None:
    beat(lab)
    lab.sh(POLITE, halt={"term_s": 1.5, "kill_s": 30.0})
    lab.says(b"up")
    start = time.monotonic()
    lab.run.halt.write_text("loss is not finite\n")
    row = lab.ended()
    assert row["cause"] == "halt-term" and 1.5 <= time.monotonic() - start < 28.0
    assert "loss is not finite" in lab.shim_says()


def test_a_beat_of_an_older_attempt_does_not_count(lab: Lab) -> None:
    beat(lab, attempt=0)
    lab.sh(POLITE, halt={"term_s": 600.0, "kill_s": 630.0})
    lab.says(b"up")
    lab.run.halt.touch()
    assert lab.ended()["cause"] == "halt-term"


def test_a_deaf_rank_and_its_children_are_killed(lab: Lab) -> None:
    lab.sh(f'sh -c "{DEAF}" & {DEAF}', halt={"term_s": 0.2, "kill_s": 1.5})
    lab.says(b"up")
    lab.run.halt.touch()
    row = lab.ended()
    assert (row["signal"], row["cause"], row["oom"]) == (signal.SIGKILL, "halt-kill", False)
    assert row["stayed"] == [] and lab.marked() == []


def test_now_shortens_a_halt_that_is_under_way(lab: Lab) -> None:
    beat(lab)
    lab.sh(DEAF, halt={"term_s": 600.0, "kill_s": 630.0, "now_term_s": 0.5, "now_kill_s": 1.0})
    lab.says(b"up")
    lab.run.halt.touch()
    until(lambda: "halt requested" in lab.shim_says())
    atomic_write_json(lab.run.halt, {"now": True, "why": "in a hurry", "who": "me"})
    row = lab.ended()
    assert row["cause"] == "halt-kill" and "in a hurry" in lab.shim_says()


def test_a_halt_is_a_latch(lab: Lab) -> None:
    beat(lab)
    lab.sh(DEAF, halt={"term_s": 1.0, "kill_s": 2.0})
    lab.says(b"up")
    lab.run.halt.touch()
    until(lambda: "halt requested" in lab.shim_says())
    lab.run.halt.unlink()
    assert lab.ended()["cause"] == "halt-kill"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "foreign"])
def test_what_is_no_file_of_ours_is_told_once_and_not_obeyed(lab: Lab, kind: str) -> None:
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can make another user's file")
    lab.sh("echo up; sleep 30")
    lab.says(b"up")
    if kind == "symlink":
        lab.run.halt.symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(lab.run.halt)
    elif kind == "directory":
        lab.run.halt.mkdir()
    else:
        lab.run.halt.touch()
        os.chown(lab.run.halt, 12345, 12345)
    until(lambda: "not obeyed" in lab.shim_says())
    time.sleep(1.2)
    assert lab.rank().alive() and lab.shim_says().count("not obeyed") == 1


def test_a_huge_halt_file_counts(lab: Lab) -> None:
    lab.sh("echo up; sleep 30")
    lab.says(b"up")
    with lab.run.halt.open("wb") as f:
        f.truncate(1 << 30)
    assert lab.ended()["cause"] == "halt-term"


def test_a_stop_order_ends_the_rank_without_a_halt(lab: Lab) -> None:
    beat(lab)
    lab.sh(DEAF)
    lab.says(b"up")
    order = {"v": 1, "ts": time.time(), "who": "supervisor", "why": "rank 1 died", "term_s": 0.2, "kill_s": 1.0}
    atomic_write_json(lab.run.stop_order(1), order)
    row = lab.ended()
    assert (row["signal"], row["cause"]) == (signal.SIGKILL, "stopped")


def test_a_stopped_rank_hears_sigterm(lab: Lab) -> None:
    lab.sh(POLITE, halt={"term_s": 0.1, "kill_s": 120.0})
    lab.says(b"up")
    lab.rank().signal(signal.SIGSTOP)
    lab.run.halt.touch()
    assert lab.ended(timeout_s=100)["exit_code"] == 75
