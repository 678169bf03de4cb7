"""Changes of a job by resumes: what differs is what was changed, put into the job again it is the new one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from workloads.contract.files import atomic_write_json
from workloads.contract.jobchanges import are_changes, changed, differences, job_file, job_of, read_changes, together
from workloads.contract.rundir import RunDir

OLD = {"name": "a", "train": {"lr": 3e-4, "steps": 10, "betas": [0.9, 0.95]}, "data": {"dataset": None}, "health": {}}


def test_what_differs_is_told_by_key_and_side() -> None:
    new = {
        "name": "a", "train": {"lr": 1e-4, "steps": 10, "betas": [0.9, 0.99]}, "data": {"dataset": {"repo": "x/y"}},
        "health": {"mode": "observe"},
    }  # fmt: skip
    found = differences(OLD, new)
    assert found == {
        "train.lr": {"was": 3e-4, "is": 1e-4}, "train.betas": {"was": [0.9, 0.95], "is": [0.9, 0.99]},
        "data.dataset": {"was": None}, "data.dataset.repo": {"is": "x/y"}, "health.mode": {"is": "observe"},
    }  # fmt: skip
    assert changed(OLD, found) == new and differences(OLD, OLD) == {}
    assert OLD["train"] == {"lr": 3e-4, "steps": 10, "betas": [0.9, 0.95]}  # untouched


def _job(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    keys = draw.sample("abcdef", draw.randint(1, 5))
    values = [None, 1, 2.5, "x", [1, 2], True]
    return {k: _job(draw, depth + 1) if depth < 3 and draw.random() < 0.4 else draw.choice(values) for k in keys}


def _without_empty(job: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _without_empty(v) if isinstance(v, dict) else v for k, v in job.items()}
    return {k: v for k, v in kept.items() if v != {}}


def test_any_chain_of_changes_leads_to_the_newest_job() -> None:
    draw = random.Random(20261122)
    for _ in range(500):
        first, second, third = (_job(draw) for _ in range(3))
        one, two = differences(first, second), differences(second, third)
        both = together(one, two)
        assert are_changes(one) or not one
        assert _without_empty(changed(first, both)) == third
        assert _without_empty(changed(changed(first, one), two)) == third
        assert together(one, differences(second, first)) == {}  # there and back again is no change


@pytest.mark.parametrize(
    "odd",
    [None, [], {"": {"is": 1}}, {"a..b": {"is": 1}}, {"a": {}}, {"a": 1}, {"a": {"is": 1, "x": 2}}, {5: {"is": 1}},
     {f"k{i}": {"is": 1} for i in range(201)}],
)  # fmt: skip
def test_what_is_no_change_is_seen(odd: object) -> None:
    assert not are_changes(odd)


def test_an_attempt_runs_with_its_own_job_or_that_of_run_json(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    atomic_write_json(run.run_json, {"job": OLD})
    run.attempt_dir(2).mkdir(parents=True)
    changes = {"name": {"was": "a", "is": "b"}}
    atomic_write_json(run.attempt_job(2), {"v": 1, "attempt": 2, "changes": changes, "job": changed(OLD, changes)})
    assert (job_of(run, 1), job_file(run, 1), read_changes(run, 1)) == (OLD, run.run_json, {})
    assert (job_of(run, 2)["name"], job_file(run, 2), read_changes(run, 2)) == ("b", run.attempt_job(2), changes)
    run.attempt_job(2).write_text("{torn")
    assert job_of(run, 2) == OLD and job_file(run, 2) == run.attempt_job(2)  # who runs it does not guess
