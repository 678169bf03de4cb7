"""Rank health is a pure function of records, beats and an injected time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.health import judge, limits_s, median_step_s
from workloads.contract.beats import Beat
from workloads.contract.records import RankRecord
from workloads.contract.states import Phase, RankHealth

NOW = 10_000.0


def record(**more) -> RankRecord:
    return RankRecord(
        "r", 1, 0, "local", 1, 1, "boot", ["x"], more.pop("ts", NOW - 50), **{"pid": 5, "start_time": 1, **more}
    )


def beats(*rows: tuple[float, str, int | None]) -> list[Beat]:
    return [Beat(0, NOW - age, Phase(msg), 0, 1, 1, {} if s is None else {"step": s}) for age, msg, s in rows]


FAST = [(12 - i, "progress", i) for i in range(10)]


@pytest.mark.parametrize(
    ("rec", "alive", "rows", "health"),
    [
        (None, None, [], "unknown"),
        (record(), False, FAST, "dead"),
        (record(), None, [], "unknown"),
        (record(), None, FAST, "live"),
        (record(), True, [], "live"),
        (record(ts=NOW - 301), True, [], "unknown"),
        (record(), True, FAST, "live"),
        (record(), True, [(40, "progress", 1), (35, "progress", 2)], "slow"),
        (record(), True, [(185, "progress", 1), (181, "progress", 2)], "silent"),
        (record(), True, [(200, "progress", 2), (100, "progress", 2), (1, "progress", 2)], "silent"),
        (record(), True, [(60, "progress", 2), (1, "progress", 2)], "slow"),
        (record(), True, [(900, "compiling", None), (1, "compiling", None)], "live"),
        (record(), True, [(1201, "compiling", None), (1, "compiling", None)], "slow"),
        (record(), True, [(601, "checkpointing", 9), (1, "checkpointing", 9)], "slow"),
        (record(), True, [(500, "progress", 1), (400, "progress", 2), (30, "progress", 5)], "live"),  # 100 s a step
        (record(ended=NOW, exit_code=0), None, FAST, "stopped"),
        (record(ended=NOW, exit_code=75), None, FAST, "stopped"),
        (record(ended=NOW, exit_code=1), None, FAST, "dead"),
        (record(ended=NOW, signal=9), None, FAST, "dead"),
        (record(ended=NOW, signal=15, cause="stopped"), None, FAST, "stopped"),
        (record(pid=None, error="no such file", cause="spawn-failed"), None, [], "dead"),
    ],
)
def test_judge(rec, alive, rows, health):
    assert judge(rec, alive, beats(*rows), NOW).health == RankHealth(health)


def test_a_frozen_process_is_stopped_whatever_its_beats_say():
    verdict = judge(record(), True, beats(*FAST), NOW, frozen=True)
    assert verdict.health is RankHealth.STOPPED and "kill -CONT" in verdict.why


@given(
    st.lists(st.tuples(st.floats(0, 5000), st.sampled_from([p.value for p in Phase]), st.none() | st.integers(0, 99))),
    st.sampled_from([True, False, None]),
    st.floats(0, 20_000),
)
def test_never_dead_unless_proved(rows, alive, now):
    verdict = judge(record(), alive, beats(*rows), now)
    assert (verdict.health is RankHealth.DEAD) == (alive is False)
    assert verdict.why


@given(st.lists(st.floats(0.001, 1e4), min_size=2, max_size=20))
def test_limits_follow_the_pace(steps):
    clock, rows = 0.0, []
    for i, step_s in enumerate(steps):
        clock += step_s
        rows.append(Beat(0, clock, Phase.PROGRESS, 0, 1, 1, {"step": i, "step_time_s": step_s}))
    slow, silent = limits_s(rows)
    assert 30 <= slow <= silent and silent >= 180
    assert min(steps) <= median_step_s(rows) <= max(steps)
