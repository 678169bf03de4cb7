"""Comparing two bench runs: the same code is clean, slower code is not, a disturbance is said and is neither."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.runs.benchcompare import Comparison, compare, devices, only_of
from tests.bench.rows import Row, filed, row, slowed

TOLERANCE = 0.05


def found(old: list[Row], new: list[Row], tolerance: float = TOLERANCE) -> Comparison:
    return compare(old, new, tolerance, "old.jsonl")


def test_the_same_rows_are_clean_and_ten_percent_slower_ones_are_not() -> None:
    rows = filed()
    timed = sum(r["us"] is not None for r in rows)
    same = found(rows, rows)
    assert (same.slower, same.unsteady, same.faster) == ((), (), ()) and same.same == same.compared == timed >= 30
    assert same.lines()[-1] == f"clean: {timed} cases, none slower by more than 5 %"
    slower = found(rows, slowed(rows, 1.10))
    assert len(slower.slower) == timed  # also where the spans of both runs overlap
    assert slower.lines()[-1] == f"regression: {timed} of {timed} cases slower than before by more than 5 %"
    assert all(9.9 < c.percent < 10.1 for c in slower.slower)
    assert len(found(slowed(rows, 1.10), rows).faster) == timed
    assert not found(rows, slowed(rows, 1.04)).slower and found(rows, slowed(rows, 1.04), 0.03).slower


def test_one_slower_case_among_many_is_named() -> None:
    rows = filed()
    slow = next(i for i, r in enumerate(rows) if "S32768 q8q8q8" in r["case"])  # its own span is 13 % wide
    new = [*rows[:slow], *slowed([rows[slow]], 1.10), *rows[slow + 1 :]]
    told = found(rows, new)
    assert [c.case for c in told.slower] == [rows[slow]["case"]] and told.slower[0].overlaps
    (line,) = [x for x in told.lines() if "SLOWER" in x]
    assert rows[slow]["case"] in line and "+10.0 %" in line and "overlapping" in line


def test_replays_as_filed_ones_spread_compare_clean_again_and_again() -> None:
    """Medians drawn anew out of each filed span, fast end as it was: what a second run of the same code looks like."""
    rows, chance = filed(), random.Random(5)
    for _ in range(200):
        again = [{**r, "us": chance.uniform(r["p10_us"], r["p90_us"])} for r in rows]
        assert not found(rows, again).slower and not found(again, rows).slower


def test_a_disturbed_median_is_said_and_is_no_regression() -> None:
    old, new = row(us=20.0), row(us=22.0, p10_us=19.9, p90_us=22.4)
    told = found([old], [new])
    assert not told.slower and [c.case for c in told.unsteady] == [old["case"]]
    assert told.lines()[-1] == "clean: 1 case, none slower by more than 5 %, 1 unsteady"
    assert any(x.startswith("unsteady") and "19.9 to 22.4" in x for x in told.lines())
    assert found([{**old, "p10_us": None}], [new]).slower  # without percentiles the median alone judges


def test_missing_new_and_untimed_cases_are_said() -> None:
    old = [row("a"), row("b"), row("c"), row("other", suite="decoupled")]
    new = [row("a"), row("c", us=None, verdict="failed"), row("d", us=1.0), row("e", us=0.0)]
    told = found(old, new)
    assert (told.missing, told.new) == (("kv-decode b",), ("kv-decode d", "kv-decode e"))  # decoupled was not asked for
    assert told.untimed == ("kv-decode c",) and told.compared == 1
    text = "\n".join(told.lines())
    assert "missing here: kv-decode b" in text and "without a time: kv-decode c" in text


@pytest.mark.parametrize("new", [[], [row("b")], [row("a", us=None)], [row("a", verdict="wrong")]])
def test_a_comparison_of_nothing_is_not_clean(new: list[Row]) -> None:
    with pytest.raises(ValueError, match="no case"):
        found([row("a")], new)


def test_what_else_changed_is_said_and_models_are_told_apart() -> None:
    old = [row("a", torch="2.10.0", device="NVIDIA L4"), row("a")]
    assert devices(old) == ["NVIDIA H200", "NVIDIA L4"] and only_of(old, ["NVIDIA H200"]) == [old[1]]
    told = found(old[:1], [row("a", how="wall")])
    assert "device: NVIDIA L4 then, NVIDIA H200 now" in told.notes and "torch: 2.10.0 then, 2.11.0 now" in told.notes
    assert any("wall clock" in note for note in told.notes)


def test_hostile_values_are_no_times() -> None:
    bad: list[Any] = ["fast", True, -1.0, float("nan"), [1], {}]
    old = [row(f"c{i}") for i in range(len(bad))] + [row("good\x1b[2J")]
    new = [row(f"c{i}", us=1.0) | {"us": x} for i, x in enumerate(bad)] + [row("good\x1b[2J", us=30.0)]
    told = found(old, new)
    assert told.compared == 1 and len(told.untimed) == len(bad) and "\x1b" not in "\n".join(told.lines())
    assert found([row("a")], [row("a", us=30.0, p10_us="x")]).slower


@settings(max_examples=200, deadline=None)
@given(
    us=st.floats(0.5, 1e5),
    factor=st.floats(0.2, 5.0),
    low=st.floats(0.8, 1.0),
    high=st.floats(1.0, 1.5),
    tolerance=st.floats(0.0, 1.0),
)
def test_code_slowed_by_a_factor_is_judged_by_that_factor_alone(
    us: float, factor: float, low: float, high: float, tolerance: float
) -> None:
    old = row("a", us=us, p10_us=us * low, p90_us=us * high)
    told = compare([old], slowed([old], factor), tolerance, "x")
    if abs(factor - 1 - tolerance) > 1e-9:
        assert bool(told.slower) == (factor > 1 + tolerance) and not told.unsteady
    assert not (told.slower and told.faster) and told.compared == 1
