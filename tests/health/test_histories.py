"""Random healthy lives are never ended, and real faults in them are found in time. Simulated time, seeds told.

`python -m pytest -m long tests/health` runs all 10,000 of them, `make test-long` the first 1,250.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

import pytest

from orchestrator.health.facts import Act
from tests.health.histories import Fault, History
from workloads.contract.health import SHARP, Rule, Rung

FEW, ALL, CHUNKS = 24, 10_000, 8


def ended(seeds: range) -> tuple[list[str], collections.Counter[str], int]:
    """(wrong ends, what was noted and dumped, looks) over the lives of these seeds."""
    wrong, told, looks = [], collections.Counter(), 0
    for seed in seeds:
        history = History(seed)
        for at, item in history.run():
            if isinstance(item, Act):
                told[f"{item.finding.rule} {item.rung}"] += 1
                if item.rung in SHARP:
                    wrong.append(f"seed {seed} at {at:.0f} s: {item.rung}: {item.finding.why}")
        looks += history.looks
    return wrong, told, looks


LOOKS_S = 7.0
"""Two looks of up to three seconds and a second in which beats are held back."""


def bounds(history: History) -> tuple[Rule, float, float]:
    """(rule, seconds to the dump, seconds to the end), as contracts.md has them; the median is at most the longest."""
    step_s = history.longest_s
    match history.fault:
        case Fault.HANG | Fault.MUTE:
            dump_s = min(max(30.0, 5 * 1.5 * step_s), max(180.0, 2 * 1.5 * step_s))
            return Rule.NO_STEP, dump_s, max(180.0, 20 * 1.5 * step_s)
        case Fault.SAVE:
            return Rule.PHASE_OVER, 600.0, 1200.0
        case Fault.GONE:
            return Rule.GONE, 2.0, 60.0
        case _:
            return Rule.NAN, 3 * max(1.0, step_s), 3 * max(1.0, step_s) + 10.0


def first(history: History, rung_of: Callable[[Act], bool]) -> float | None:
    """Seconds from the fault to the first act that is one."""
    for at, item in history.run():
        if at > history.sick_at and isinstance(item, Act) and rung_of(item) and not item.suppressed:
            return at - history.sick_at
    return None


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_dumped_and_ended_in_time(fault: Fault) -> None:
    for seed in range(8):
        history = History(seed, fault=fault, clear=True)
        found: dict[Rung, tuple[float, Rule]] = {}
        for at, item in history.run():
            if at > history.sick_at and isinstance(item, Act) and not item.suppressed:
                found.setdefault(item.rung, (at - history.sick_at, item.finding.rule))
                if item.rung in SHARP:
                    break
        rule, dump_s, end_s = bounds(history)
        sharp = [found[r] for r in SHARP & found.keys()]
        told = f"seed {seed}: {found}, longest step {history.longest_s:.1f} s"
        assert Rung.DUMP in found and found[Rung.DUMP][0] <= dump_s + LOOKS_S, told
        assert sharp and sharp[0][0] <= end_s + LOOKS_S, told
        assert rule in {r for _, r in found.values()} | {Rule.NO_BEAT}, told


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_found_in_the_end_however_badly_it_is_seen(fault: Fault) -> None:
    for seed in range(100, 104):
        history = History(seed, fault=fault)
        assert first(history, lambda act: act.rung in SHARP) is not None, f"seed {seed}"


def test_healthy_lives_are_never_ended() -> None:
    wrong, told, looks = ended(range(FEW))
    assert wrong == []
    assert looks > 100 * FEW and len(told) > 8, "the lives are eventful enough to be told of"


@pytest.mark.long
@pytest.mark.parametrize("chunk", [0, *(pytest.param(n, marks=pytest.mark.proof) for n in range(1, CHUNKS))])
def test_ten_thousand_healthy_lives_are_never_ended(chunk: int) -> None:
    size = ALL // CHUNKS
    wrong, _, _ = ended(range(chunk * size, (chunk + 1) * size))
    assert wrong == []
