"""The halt clock as a pure function: many histories, no waiting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workloads.contract.haltfile import Halt
from workloads.contract.records import HaltClocks
from workloads.shim.halt import TOLD_KILL_S, Asked, Send, Verdict, clocks

LIMITS = HaltClocks()
SLOW, NOW = Halt(False, "", "a file", 0.0), Halt(True, "", "me", 0.0)


def at(asked: Asked, now: float, beaten: bool = True) -> Verdict:
    return clocks(asked, LIMITS, has_beaten=beaten, now=now)


def test_the_default_clock() -> None:
    asked = Asked().halted(SLOW, 100.0)
    assert at(asked, 699.9).send is Send.NOTHING
    assert at(asked, 700.0) == Verdict(Send.TERM, "halt-term")
    assert at(asked, 729.9).send is Send.TERM
    assert at(asked, 730.0) == Verdict(Send.KILL, "halt-kill")


def test_a_rank_that_never_beat_is_asked_at_once_and_killed_no_sooner() -> None:
    for request, kill_s in ((SLOW, 630.0), (NOW, 30.0)):
        asked = Asked().halted(request, 5.0)
        assert at(asked, 5.0, beaten=False) == Verdict(Send.TERM, "halt-term")
        assert at(asked, 5.0 + kill_s - 0.1, beaten=False).send is Send.TERM
        assert at(asked, 5.0 + kill_s, beaten=False).send is Send.KILL


def test_now_counts_from_when_it_was_seen_and_never_lengthens_the_clock() -> None:
    asked = Asked().halted(SLOW, 0.0).halted(NOW, 50.0)
    assert at(asked, 59.9).send is Send.NOTHING and at(asked, 60.0).send is Send.TERM
    assert at(asked, 79.9).send is Send.TERM and at(asked, 80.0).send is Send.KILL
    late = Asked().halted(SLOW, 0.0).halted(NOW, 625.0)
    assert at(late, 630.0).send is Send.KILL


def test_requests_are_latches() -> None:
    asked = Asked().halted(NOW, 1.0).halted(SLOW, 2.0).halted(NOW, 3.0).stopped(1.0, 2.0, 4.0).stopped(0.0, 0.0, 5.0)
    assert asked == Asked(halt_at=1.0, now_at=1.0, stop_at=4.0, stop_term_s=1.0, stop_kill_s=2.0)
    assert Asked().told(1.0).told(9.0) == Asked(told_at=1.0)


def test_a_stop_order_does_not_wait_for_beats_and_sigterm_is_at_once() -> None:
    asked = Asked().stopped(2.0, 5.0, 10.0)
    assert at(asked, 11.9, beaten=False).send is Send.NOTHING
    assert at(asked, 12.0) == Verdict(Send.TERM, "stopped") and at(asked, 15.0) == Verdict(Send.KILL, "stopped")
    told = Asked().halted(SLOW, 0.0).told(3.0)
    assert at(told, 3.0) == Verdict(Send.TERM, "stopped")
    assert at(told, 3.0 + TOLD_KILL_S) == Verdict(Send.KILL, "stopped")


TIMES = st.none() | st.floats(0, 1000)


@given(TIMES, TIMES, TIMES, TIMES, st.booleans(), st.floats(0, 2000), st.floats(0, 2000))
def test_what_was_sent_is_never_taken_back(
    halt_at: float | None, now_at: float | None, stop_at: float | None, told_at: float | None,
    beaten: bool, first: float, second: float,
) -> None:  # fmt: skip
    asked = Asked(halt_at=halt_at, now_at=now_at, stop_at=stop_at, told_at=told_at)
    early, late = sorted((first, second))
    assert at(asked, early, beaten).send <= at(asked, late, beaten).send
    if asked == Asked():
        assert at(asked, late, beaten).send is Send.NOTHING
