"""kill -9 of every process that keeps a run alive, one after the other, under a training run.

The promise is the same each time: the ranks that lived go on with the same pid, the run succeeds in its first attempt
(but where a rank had to die), and its ledger is bitwise that of a run nobody disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pods.keeper.client import running
from pods.keeper.runs import lock_is_held
from tests.local.conftest import CPUS, Orch, losses_of, rank_pid, restarts_of, rows, steps_of, wait_for
from tests.local.test_train import SMALL
from workloads.contract.files import read_json
from workloads.contract.process import ProcId, environ_of, marked
from workloads.contract.rundir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.skipif(CPUS < 2, reason="two ranks need two CPUs")]

STEPS = 2500
"""Enough for the whole of a fault and its repair to fall into the run: about 60 s on two cores."""


@pytest.fixture(scope="module")
def undisturbed(orch: Orch) -> RunDir:
    run = orch.launch(*training("undisturbed"))
    orch.wait(run, "succeeded", "failed", timeout_s=400)
    assert orch.state(run) == "succeeded", orch.story(run)
    return run


def training(name: str) -> tuple[str, ...]:
    return ("tiny", "--name", name, "--set", f"train.steps={STEPS}", *SMALL, "--set", "checkpoint.every_steps=200")


def named(word: str) -> Callable[[ProcId], bool]:
    def matches(ident: ProcId) -> bool:
        try:
            return word in Path(f"/proc/{ident.pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            return False

    return matches


def ray_process(orch: Orch, word: str) -> ProcId:
    """The one process of this home's Ray cluster whose command line has `word`."""
    cluster = next((orch.home.path / "ray").iterdir()).name
    found = [p for p in marked(cluster, "ORCH_CLUSTER") if named(word)(p)]
    assert len(found) == 1, f"{word}: {found}"
    return found[0]


def supervisor_of(orch: Orch, run: RunDir) -> ProcId:
    row = read_json(run.status)["supervisor"]
    return ProcId(row["pid"], row["start_time"], row["boot_id"])


def keeper_of(orch: Orch) -> ProcId:
    record = running(orch.home)
    assert record is not None
    return ProcId(record["pid"], record["start_time"], record["boot_id"])


def start(orch: Orch, name: str) -> tuple[RunDir, list[ProcId]]:
    run = orch.launch(*training(name))
    orch.wait_step(run, 100)
    return run, [rank_pid(run, 1, rank) for rank in (0, 1)]


def finish_in_first_attempt(orch: Orch, run: RunDir, undisturbed: RunDir) -> None:
    orch.wait(run, "succeeded", "failed", timeout_s=400)
    assert orch.state(run) == "succeeded", orch.story(run)
    assert read_json(run.status)["attempt"] == 1
    assert not run.attempt_dir(2).exists()
    assert losses_of(run) == losses_of(undisturbed)
    assert not marked(run.run_id)


@pytest.mark.parametrize("word", ["gcs_server", "raylet/raylet"])
def test_ray_dies(orch: Orch, undisturbed: RunDir, word: str) -> None:
    """The ranks do not notice; Ray is started again and a new supervisor finds them."""
    run, ranks = start(orch, "ray-dies")
    before = supervisor_of(orch, run)
    assert ray_process(orch, word).signal(9)
    wait_for(lambda: not before.alive(), 90, lambda: orch.story(run))
    assert all(r.alive() for r in ranks)
    wait_for(lambda: lock_is_held(run.supervisor_lock), 120, lambda: orch.story(run))
    assert all(r.alive() for r in ranks), "they ended before the repair: raise STEPS"
    finish_in_first_attempt(orch, run, undisturbed)


def test_the_supervisor_dies(orch: Orch, undisturbed: RunDir) -> None:
    run, ranks = start(orch, "sup-dies")
    before = supervisor_of(orch, run)
    assert before.signal(9)
    wait_for(lambda: supervisor_of(orch, run) != before and lock_is_held(run.supervisor_lock), 60)
    assert all(r.alive() for r in ranks), "they ended before the repair: raise STEPS"
    finish_in_first_attempt(orch, run, undisturbed)


def test_the_agent_dies(orch: Orch, undisturbed: RunDir) -> None:
    run, ranks = start(orch, "agent-dies")
    agent = ray_process(orch, "PodAgent")
    assert agent.signal(9)
    wait_for(lambda: not agent.alive(), 20)
    step = steps_of(run)[-1]
    orch.wait_step(run, step + 200)
    assert all(r.alive() for r in ranks)
    finish_in_first_attempt(orch, run, undisturbed)


def test_the_keeper_dies_and_comes_back_without_anybody_asking(orch: Orch, undisturbed: RunDir) -> None:
    run, ranks = start(orch, "keeper-dies")
    before = keeper_of(orch)
    assert before.signal(9)
    wait_for(lambda: running(orch.home) is not None and keeper_of(orch) != before, 30, lambda: orch.story(run))
    assert not {"RAY_AUTH_MODE", "ORCH_CLUSTER"} & environ_of(keeper_of(orch).pid).keys()
    assert all(r.alive() for r in ranks)
    finish_in_first_attempt(orch, run, undisturbed)


def test_keeper_and_ray_die_together_and_a_status_brings_them_back(fresh_orch: Orch) -> None:
    """Nothing of ours is left but the ranks. The next contact starts the keeper, which repairs the rest."""
    orch = fresh_orch
    run, ranks = start(orch, "both-die")
    cluster = next((orch.home.path / "ray").iterdir()).name
    keeper_of(orch).signal(9)
    for ident in marked(cluster, "ORCH_CLUSTER"):
        ident.signal(9)
    assert all(r.alive() for r in ranks)
    text = orch("status", run.run_id)
    assert "unsupervised" in text or "no supervisor" in text, text
    orch("resume", run.run_id, code=6)  # it runs: nothing to resume, but the contact wakes the keeper
    wait_for(lambda: lock_is_held(run.supervisor_lock), 120, lambda: orch.story(run))
    orch("halt", run.run_id)
    assert orch.state(run) == "halted"
    assert read_json(run.status)["attempt"] == 1


def test_halt_works_with_ray_dead_and_the_state_follows(fresh_orch: Orch) -> None:
    orch = fresh_orch
    run, ranks = start(orch, "halt-dead")
    cluster = next((orch.home.path / "ray").iterdir()).name
    for ident in marked(cluster, "ORCH_CLUSTER"):
        ident.signal(9)
    run.halt.touch()
    wait_for(lambda: not any(r.alive() for r in ranks), 60, lambda: orch.story(run))
    assert read_json(run.halt_ack(0))["step"] == read_json(run.halt_ack(1))["step"]
    orch.wait(run, "halted", timeout_s=150)
    orch("resume", run.run_id)
    orch.wait(run, "running", timeout_s=150)
    orch("halt", run.run_id)


def test_every_rank_dies_again_and_again_and_no_step_is_lost(orch: Orch, undisturbed: RunDir) -> None:
    run, _ = start(orch, "ranks-die")
    for attempt in (1, 2, 3):
        wait_for(lambda a=attempt: run.rank_record(a, 1).exists(), 60, lambda: orch.story(run))
        wait_for(lambda a=attempt: any(r["attempt"] == a for r in rows_now(run)), 90, lambda: orch.story(run))
        before = steps_of(run)[-1]
        orch.wait_step(run, before + 210)  # at least one checkpoint further
        assert rank_pid(run, attempt, attempt % 2).signal(9)
    orch.wait(run, "succeeded", "failed", timeout_s=400)
    assert orch.state(run) == "succeeded", orch.story(run)
    assert read_json(run.status)["attempt"] == 4
    assert losses_of(run) == losses_of(undisturbed)
    assert len(restarts_of(run)) == 3


def rows_now(run: RunDir) -> list[dict[str, int]]:
    try:
        return rows(run.ledger)
    except ValueError:
        return []


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(orch: Orch, undisturbed: RunDir) -> None:
    run, _ = start(orch, "flipped")
    orch.wait_step(run, 450)
    orch("halt", run.run_id)
    newest = sorted(p for p in run.checkpoints.iterdir() if p.name.startswith("step_"))[-1]
    victim = max((p for p in newest.iterdir()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    orch("resume", run.run_id)
    orch.wait(run, "succeeded", "failed", timeout_s=400)
    assert losses_of(run) == losses_of(undisturbed)
    assert newest.name in run.rank_log(0).read_text()


def test_down_refuses_while_a_run_lives_and_then_leaves_nothing(fresh_orch: Orch) -> None:
    orch = fresh_orch
    run, _ = start(orch, "down")
    cluster = next((orch.home.path / "ray").iterdir()).name
    orch("down", code=6)
    orch("halt", "--all")
    keeper = keeper_of(orch)
    orch("down")
    wait_for(lambda: not keeper.alive(), 20)
    assert not marked(cluster, "ORCH_CLUSTER") and not marked(run.run_id)
