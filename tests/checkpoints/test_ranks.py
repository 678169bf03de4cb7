"""Two real ranks, one killed in the midst of a save: the next attempt computes what an unbroken run computes."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.checkpoints.killer import flip
from tests.checkpoints.saver import leftovers, verified
from tests.train.harness import exactness, launch_ranks, make_run, train
from workloads.contract.rundir import RunDir
from workloads.contract.trouble import read_troubles

pytestmark = pytest.mark.long
JOB = {"train": {"steps": 40}, "checkpoint": {"every_s": None, "every_steps": 10}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("unbroken"), JOB)
    assert train(run) == [0, 0]
    return run


SHORT = ((0, 15, 10), (0, 28, 20), (1, 2, 10))
"""(victim, thing it does, newest checkpoint then): in the midst, behind the rename, the rank that does not commit."""
WHOLE = ((0, 0, 10), (0, 4, 10), (0, 27, 10), (1, 0, 10), (1, 6, 10))


@pytest.mark.parametrize(
    ("victim", "n", "newest"), [*SHORT, *(pytest.param(*point, marks=pytest.mark.proof) for point in WHOLE)]
)
def test_a_rank_killed_while_saving_costs_nothing_but_time(
    tmp_path: Path, unbroken: RunDir, victim: int, n: int, newest: int
) -> None:
    run = make_run(tmp_path, JOB)
    argv = [sys.executable, "-m", "tests.checkpoints.killed"]
    with launch_ranks(run, argv=argv, env={"TEST_KILL": f"{victim}:{n}"}) as ranks:
        codes = ranks.wait()
    assert codes[victim] == -signal.SIGKILL, ranks.log(victim)
    assert codes[1 - victim] == 75, ranks.log(1 - victim)
    assert max(verified(run)) == newest, ranks.log(victim)
    assert train(run, attempt=2) == [0, 0]
    assert f"resume: step {newest} from" in run.rank_log(0).read_text()
    assert exactness(run) == exactness(unbroken)
    assert verified(run) == [40, 30] and leftovers(run) == []


def test_ranks_of_an_older_attempt_start_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, JOB)
    with launch_ranks(run) as ranks:
        run.epoch.write_text("2\n")  # while they import torch
        assert ranks.wait() == [76, 76]
    assert not run.ledger.exists() and list(run.checkpoints.iterdir()) == []


def test_all_ranks_refuse_together_when_nothing_verifies(tmp_path: Path, unbroken: RunDir) -> None:
    shutil.copytree(unbroken.path, tmp_path / unbroken.run_id)
    run = RunDir(tmp_path / unbroken.run_id)
    for path in run.checkpoints.iterdir():
        flip(path / "trainer.json")
    assert train(run, attempt=2) == [77, 77]
    assert all("error[E-TRAIN-005]: none of 2 checkpoints verifies" in run.rank_log(k).read_text() for k in (0, 1))
    assert sorted(t.checkpoint for t in read_troubles(run)[0]) == ["step_00000030", "step_00000040"]
