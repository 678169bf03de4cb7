"""Two ranks, replicated and in shards, killed at a random step: what comes of it is the unbroken run, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.verify.resumes import KINDS, against, many, told, trained, unlike

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.proof), "fsdp2"])
def test_a_run_that_is_killed_ends_with_the_bits_of_the_unbroken_one(tmp_path: Path, parallel: str) -> None:
    seed, steps = int.from_bytes(os.urandom(3), "big"), 40
    unbroken, _ = trained(tmp_path / "unbroken", parallel, [], steps)
    one = against(unbroken, tmp_path / "killed", parallel, seed, steps)
    assert not one.wrong, told(one)
    newest = [unbroken.checkpoint(step) for step in (steps - steps % 7, steps)]
    assert "differ" in unlike(newest[0], newest[1], tmp_path)  # what says so can say so


@pytest.mark.proof
@pytest.mark.parametrize("parallel", KINDS)
def test_twenty_runs_with_a_kill_each_change_not_one_bit(tmp_path: Path, parallel: str) -> None:
    seeds = [int.from_bytes(os.urandom(3), "big") for _ in range(20)]
    outcomes = many(tmp_path, parallel, seeds, lambda one: print(told(one)))
    assert len(outcomes) == 20 and not any(one.wrong for one in outcomes), "\n".join(map(told, outcomes))
