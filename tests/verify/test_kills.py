"""Kills at steps: drawn from a seed, carried out on real ranks under the real supervision, without Ray."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.runs.ledgers import first_difference, first_unlike, read_ledger
from orchestrator.runs.source import LocalSource
from orchestrator.runs.verifyresume import EQUAL, UNPROVEN, Kill, Made, compare, first_kill, lost_rows, plan_kills
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run
from tests.train.harness import TINY, merged
from tests.verify.resumes import killed_along
from workloads.contract.errors import UsageError
from workloads.contract.rundir import OrchHome, RunDir

WRITER = """
import json, os, pathlib, time
path = pathlib.Path(os.environ["ORCH_RUN_DIR"], "ledger.jsonl")
first = sum(1 for _ in path.open()) + 1 if path.exists() else 1
if os.environ["RANK"] != "0":  # no rank ends before the first one
    ends = time.monotonic() + 120
    while time.monotonic() < ends and (not path.exists() or sum(1 for _ in path.open()) < 40):
        time.sleep(0.05)
    raise SystemExit
for step in range(first, 41):
    with path.open("a") as f:
        f.write(json.dumps({"step": step, "attempt": int(os.environ["ORCH_ATTEMPT"])}) + "\\n")
    time.sleep(0.1)
"""
Make = Callable[..., Desk]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    desks: list[Desk] = []

    def build(argv: list[str], **changes: object) -> Desk:
        desks.append(Desk(make_run(OrchHome(tmp_path / "home"), argv, **changes)))  # type: ignore[arg-type]
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


def test_the_same_seed_is_the_same_plan() -> None:
    plan = plan_kills(20, 200, 2, 7)
    assert plan == plan_kills(20, 200, 2, 7) != plan_kills(20, 200, 2, 8)
    steps = [k.step for k in plan]
    assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] <= 180
    assert {k.ranks for k in plan} == {(0,), (1,), (0, 1)}
    assert {k.ranks for k in plan_kills(20, 200, 1, 7)} == {(0,)}
    for kills, length in ((0, 10), (10, 10), (3, 2)):
        with pytest.raises(UsageError):
            plan_kills(kills, length, 1, 0)
    assert all(len(plan_kills(9, 10, w, s)) == 9 for w, s in itertools.product((1, 2, 8), range(20)))


def test_ranks_are_killed_at_their_steps_one_kill_an_attempt(make: Make) -> None:
    desk = make([sys.executable, "-c", WRITER], world=2, restart={"max": 5, "backoff_s": [0]})
    plan = [Kill(3, (1,)), Kill(4, (0, 1)), Kill(20, (0,))]
    made = killed_along(desk, plan, 60)
    assert [(m.planned, m.attempt, m.ranks) for m in made] == [(3, 1, (1,)), (4, 2, (0, 1)), (20, 3, (0,))]
    assert all(m.planned <= m.step <= 40 for m in made)
    assert desk.status["state"] == "succeeded" and desk.status["attempt"] == 4
    for m in made:
        assert all(desk.rank(m.attempt, k)["signal"] == 9 for k in m.ranks), m


def test_a_run_that_is_over_is_not_waited_for(make: Make) -> None:
    desk = make([sys.executable, "-c", "pass"])
    assert killed_along(desk, [Kill(5, (0,))], 30) == []


JOB = merged(
    TINY,
    {
        "train": {"steps": 200}, "checkpoint": {"every_s": None, "every_steps": 7},
        "restart": {"max": 23, "backoff_s": [0]},
    },
)  # fmt: skip


def trained(make: Make, plan: list[Kill], world: int = 1) -> tuple[RunDir, list[Made]]:
    desk = make([sys.executable, "-m", "workloads.train"], world=world, kind="train", job=JOB)
    made = killed_along(desk, plan, 600)
    assert desk.status["state"] == "succeeded", desk.run.rank_log(0).read_text()[-3000:]
    return desk.run, made


@pytest.mark.long
def test_equal_is_said_only_where_a_checkpoint_was_loaded(make: Make) -> None:
    """Killed before the first checkpoint, and at the first step of which `orch verify-resume` kills."""
    unbroken, _ = trained(make, [])
    one = LocalSource(OrchHome(unbroken.path.parents[1]), unbroken)
    for step, verdict in ((2, UNPROVEN), (first_kill(7), EQUAL)):
        plan = [Kill(step, (0,))]
        run, made = trained(make, plan)
        other = LocalSource(one.home, run)
        found = compare(
            one, other, (one.view(), other.view()), steps=200, world=1, pod="local", seed=0, kills=tuple(plan),
            made=tuple(made),
        )  # fmt: skip
        assert (found.verdict, found.difference) == (verdict, None), found.lines()


@pytest.mark.long
@pytest.mark.proof
def test_twenty_kills_of_the_trainer_change_not_one_bit(make: Make) -> None:
    seed = int.from_bytes(os.urandom(3), "big")
    plan = plan_kills(20, 200, 1, seed)
    unbroken, _ = trained(make, [])
    run, made = trained(make, plan)
    final, lost = read_ledger(run.ledger), lost_rows(LocalSource(OrchHome(run.path.parents[1]), run), 30)
    print(json.dumps({"seed": seed, "killed_behind": [m.step for m in made], "made_again": len(lost)}))
    assert len(made) == 20, seed
    assert first_difference(read_ledger(unbroken.ledger), final, 200) is None, seed
    assert first_unlike(lost, final) is None and lost, seed
