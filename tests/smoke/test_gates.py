"""The gates at their limits: figures in, verdicts out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from workloads.contract.smoke import Gate, Steps, in_words, is_go, judge


def steps(n: int = 250, **columns: Any) -> Steps:
    """A good run of `n` rows; columns replaced by name, None takes one away."""
    good: dict[str, Any] = {
        "step": [float(i) for i in range(1, n + 1)],
        "loss": [5.0 - i / n for i in range(n)],
        "toks_per_s": [1000.0] * n,
        "dt_fetch_s": [0.01] * n,
    }
    return Steps(n, {k: v for k, v in {**good, **columns}.items() if v is not None})


def by_name(gates: tuple[Gate, ...]) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates}


def test_a_good_run_is_go_and_every_gate_tells_figure_limit_and_unit() -> None:
    gates = judge(steps(), min_tps=900.0)
    assert is_go(gates) and [g.verdict for g in gates] == ["pass"] * 4
    assert {g.name: (g.at_least, g.at_most) for g in gates} == {
        "rows": (100, None), "loss": (1.0, None), "tokens/s": (900.0, None), "fetches": (None, 10.0),
    }  # fmt: skip
    assert all(g.figure is not None and g.unit and g.why for g in gates)
    assert in_words(gates) == "4 of 4 gates passed"


@pytest.mark.parametrize(("rows", "verdict"), [(99, "fail"), (100, "pass")])
def test_a_hundred_rows(rows: int, verdict: str) -> None:
    assert by_name(judge(steps(rows)))["rows"].verdict == verdict


@pytest.mark.parametrize(
    ("last", "verdict"), [(0.9901, "fail"), (0.99, "pass"), (1.0, "fail"), (math.nan, "fail"), (-math.inf, "fail")]
)
def test_the_loss_must_fall_by_one_percent(last: float, verdict: str) -> None:
    gate = by_name(judge(steps(loss=[100.0] * 50 + [100.0 * last] * 200)))["loss"]
    assert gate.verdict == verdict


def test_a_loss_below_zero_falls_too() -> None:
    assert by_name(judge(steps(loss=[-1.0] * 50 + [-1.02] * 200)))["loss"].verdict == "pass"
    assert by_name(judge(steps(loss=[-1.0] * 50 + [-0.9] * 200)))["loss"].verdict == "fail"
    assert by_name(judge(steps(loss=[0.0] * 250)))["loss"].verdict == "fail"


def test_only_the_last_hundred_rows_say_how_fast_it_is() -> None:
    rates = [1.0] * 150 + [500.0] * 49 + [501.0] * 51
    gates = by_name(judge(steps(toks_per_s=rates), min_tps=500.5))
    assert gates["tokens/s"].figure == 501.0 and gates["tokens/s"].verdict == "pass"
    assert by_name(judge(steps(toks_per_s=rates), min_tps=501.5))["tokens/s"].verdict == "fail"


def test_what_was_not_told_is_not_judged_unless_it_was_asked_for() -> None:
    bare = steps(toks_per_s=None, dt_fetch_s=None)
    gates = judge(bare)
    assert is_go(gates) and in_words(gates) == "2 of 4 gates passed; 2 not judged"
    assert by_name(judge(bare, min_tps=1.0))["tokens/s"].verdict == "fail"
    assert by_name(judge(steps(loss=None)))["loss"].verdict == "fail"  # every training must tell one
    assert in_words(judge(steps(50, loss=None))) == "2 of 4 gates failed: rows, loss; 1 not judged"


@pytest.mark.parametrize(("slow", "verdict"), [(25, "pass"), (26, "fail")])
def test_a_tenth_of_the_fetches_may_be_slow(slow: int, verdict: str) -> None:
    waits = [2.0] * (250 - slow) + [2.001] * slow
    assert by_name(judge(steps(dt_fetch_s=waits)))["fetches"].verdict == verdict
    assert by_name(judge(steps(dt_fetch_s=[math.nan] * 250)))["fetches"].verdict == "fail"


GOOD_GATES = {
    "gate_entropy_mean": 0.3, "gate_max_gate": 0.85, "gate_collapse_frac": 0.2, "gate_branch_shares": [0.05, 0.8, 0.15]
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, []),
        ({"gate_entropy_mean": 0.29}, ["gate entropy"]),
        ({"gate_max_gate": 0.86}, ["largest gate"]),
        ({"gate_collapse_frac": 0.21}, ["collapsed gates"]),
        ({"gate_branch_shares": [0.04, 0.81, 0.15]}, ["share of cmp", "share of sel"]),
        ({"gate_branch_shares": [0.3, 0.3]}, []),  # none: it names no branch
        ({"gate_entropy_mean": math.nan}, []),
    ],
)
def test_sparse_attention_is_judged_where_beats_tell_of_it(change: dict[str, Any], failed: list[str]) -> None:
    gates = judge(steps(), [{**GOOD_GATES, **change}] * 5)
    assert [g.name for g in gates if g.verdict == "fail"] == failed
    assert len(gates) == 4 + 6 - (3 if change.get("gate_branch_shares") == [0.3, 0.3] else 0) - (
        "gate_entropy_mean" in change and math.isnan(change["gate_entropy_mean"])
    )


def test_sparse_attention_is_judged_by_its_last_hundred_beats() -> None:
    late = [{"gate_entropy_mean": 0.0}] * 500 + [{"gate_entropy_mean": 0.5}] * 51 + [{"gate_entropy_mean": 0.0}] * 49
    assert by_name(judge(steps(), late))["gate entropy"].verdict == "pass"
    assert "gate entropy" not in by_name(judge(steps()))
