"""Cells of the fault table under pytest: one by default, nineteen that stand for all as `long`, more as `proof`.

The whole table is `make faults`.
"""

from __future__ import annotations

import os

import pytest

from tests.faults.__main__ import chosen, repeat, run_all, run_cell, table
from tests.faults.book import all_cells
from tests.faults.words import Fault, When

QUICK = "halt/checkpointing"
LONG = (
    "rank-killed/halting", "rank-killed/checkpointing", "rank-oom/training", "rank-hangs/training",
    "rank-stopped/checkpointing", "rank-nan/training", "rank-stale/training", "rank-leaves-child/halting",
    "crash-loop/training", "shim-killed/training", "shim-killed/resuming", "supervisor-killed/halting",
    "supervisor-dies-again/whole", "supervisor-stopped/training", "disk-full/halting", "run-vanished/checkpointing",
    "checkpoint-flipped/between", "pid-reused/training", "resume-twice/ended",
)  # fmt: skip
PROOF = (
    "rank-killed/training", "rank-exits/resuming", "shim-stopped/halting", "supervisor-killed/between",
)  # fmt: skip


def is_ok(name: str) -> None:
    row = run_cell(name)
    if row["verdict"] == "skipped":
        pytest.skip(row["why"])
    assert row["verdict"] == "ok", f"{row['why']}\nagain: {repeat(all_cells()[name])}"


def test_quick() -> None:
    for cell, row in run_all([all_cells()[QUICK]], jobs=2):
        assert row["verdict"] == "ok", f"{row['why']}\nagain: {repeat(cell)}"


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.lab] if all_cells()[n].root else []) for n in LONG]
)
def test_long(name: str) -> None:
    is_ok(name)


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.parametrize("name", PROOF)
def test_proof(name: str) -> None:
    is_ok(name)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.proof  # tests/local/test_faults.py kills the same two, under a real training
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two CPUs")
def test_full_stack() -> None:
    for name in ("raylet-killed/training", "agent-killed/training"):
        is_ok(name)


def test_every_fault_has_a_cell_and_there_are_enough() -> None:
    cells = all_cells().values()
    assert {c.fault for c in cells} == set(Fault) and {c.when for c in cells} == set(When)
    assert len(cells) >= 60 and len([c for c in cells if c.full]) >= 8
    assert {QUICK, *LONG, *PROOF} <= all_cells().keys()


def test_what_is_chosen_and_what_the_table_says() -> None:
    assert [c.name for c in chosen(["rank-oom"])] == ["rank-oom/loading", "rank-oom/training"]
    assert len(chosen([])) == len(all_cells()) and chosen(["nothing"]) == []
    cells = chosen(["rank-oom"])
    results = {
        "rank-oom/loading": {"verdict": "ok", "seconds": 3.21},
        "rank-oom/training": {"verdict": "FAIL", "seconds": 9.0},
    }
    lines = table(results, cells).splitlines()
    assert lines[0].split() == ["loading", "training"] and lines[1].split() == ["rank-oom", "3.2", "FAIL", "9.0"]
