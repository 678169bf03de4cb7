"""Cells of ranks that live and make no progress, or make it in NaN: named, dumped, and only then ended.

The limits are those of seconds, said in the job as a person would say them.
"""

from __future__ import annotations

import signal
from typing import Any

from tests.faults.book import cells
from tests.faults.ranks import STRUCK, says
from tests.faults.stand import Stand
from tests.faults.words import Fault, When

LIMITS: dict[str, Any] = {"rules": {
    "no_step": {"limit": 2, "act_limit": 4},
    "stopped": {"limit": 1},
    "phase_over": {"limits": {p: 3 for p in ("starting", "loading", "compiling", "checkpointing", "evaluating")},
                   "act_factor": 1.5},
    "nan": {"in_a_row": 2},
}}  # fmt: skip
"""of seconds where a job has minutes"""
SHARP = ("halt", "kill", "restart", "give_up")


def is_ended_for_it(stand: Stand, attempt: int, rules: tuple[str, ...]) -> None:
    """The run goes on in a new attempt, because of a finding of one of `rules` that was told and dumped before."""
    stand.until(lambda: stand.attempt > attempt, "the next attempt")
    events = [e for e in stand.events() if e["attempt"] == attempt]
    sharp = [e for e in events if e["what"] == "health" and e["data"]["rung"] in SHARP]
    dumps = [e for e in events if e["what"] == "dump"]
    assert sharp and sharp[0]["data"]["rule"] in rules, [e["why"] for e in events]
    assert dumps and dumps[0]["seq"] < min(e["seq"] for e in events if e.get("to") == "resuming"), (
        "no dump before the end"
    )
    assert list(stand.run.stackdumps.glob("watchdog_*")), "the dump is not on disk"
    says(sharp[0]["why"], "rank ", "limit ")


def hangs(stand: Stand, when: When, what: str, rules: tuple[str, ...]) -> None:
    stand.health = LIMITS
    attempt = stand.bring_to(when)
    if what == "stop":
        assert stand.rank(STRUCK, attempt).signal(signal.SIGSTOP)
    else:
        stand.control.do(STRUCK, what, attempt=attempt)
    stand.control.release()
    is_ended_for_it(stand, attempt, rules)
    stand.bring_back()


@cells(Fault.RANK_HANGS, When.LOADING, When.TRAINING, When.CHECKPOINTING, When.EVALUATING, When.RESUMING)
def rank_hangs(stand: Stand, when: When) -> None:
    hangs(stand, when, "hang", ("no_step", "phase_over", "no_beat"))


@cells(Fault.RANK_HOLDS_GIL, When.TRAINING, When.CHECKPOINTING)
def rank_holds_gil(stand: Stand, when: When) -> None:
    hangs(stand, when, "hold_gil", ("no_step", "phase_over", "no_beat"))


@cells(Fault.RANK_STOPPED, When.TRAINING, When.CHECKPOINTING, When.LOADING)
def rank_stopped(stand: Stand, when: When) -> None:
    hangs(stand, when, "stop", ("no_step", "phase_over", "no_beat", "stopped"))


@cells(Fault.RANK_STOPPED, When.HALTING)
def rank_stopped_halting(stand: Stand, when: When) -> None:
    """A halt has clocks of its own: SIGTERM wakes it, and it acknowledges."""
    stand.grace_s = 3.0
    attempt = stand.bring_to(when)
    assert stand.rank(STRUCK, attempt).signal(signal.SIGSTOP)
    stand.control.release()
    stand.until_state("halted")
    stand.bring_back()


@cells(Fault.RANK_NAN, When.TRAINING)
def rank_nan(stand: Stand, when: When) -> None:
    """A restart would come to the same NaN: halted with a checkpoint, and `.anomaly_type` for scripts that read it."""
    stand.health = LIMITS
    stand.steps, stand.step_s = 400, 0.03
    stand.bring_to(when)
    stand.control.do(0, "make_nan")
    stand.control.release()
    reason = stand.until_state("halted")["reason"]
    says(reason, "watchdog", "nan")
    assert stand.run.anomaly_type.read_text().strip() == "nan"
    assert [e for e in stand.events("dump")], "no dump before the halt"
    stand.bring_back()
    assert not stand.run.anomaly_type.exists()
