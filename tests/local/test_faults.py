"""kill -9 of every process that keeps a run alive, one after the other, under a training run.

The promise is the same each time: the ranks that lived go on with the same pid, the run stays in its first attempt
(but where a rank had to die), and its ledger is bitwise that of a run nobody disturbed. A repair takes as long as the
machine lets it: a run that must outlive one has no end of its own, and is halted once it was repaired.
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

STEPS, ENDLESS, COMPARED = 2500, 100_000, 400


@pytest.fixture(scope="module")
def undisturbed(orch: Orch) -> RunDir:
    """To its end."""
    run = orch.launch(*training("undisturbed", STEPS))
    orch.wait(run, "succeeded", "failed", timeout_s=600)
    assert orch.state(run) == "succeeded", orch.story(run)
    return run


@pytest.fixture(scope="module")
def beginning(orch: Orch) -> RunDir:
    """The first steps of an endless run."""
    run = orch.launch(*training("beginning"))
    orch.wait_step(run, COMPARED)
    orch("halt", run.run_id)
    return run


def training(name: str, steps: int = ENDLESS) -> tuple[str, ...]:
    return ("tiny", "--name", name, "--set", f"train.steps={steps}", *SMALL, "--set", "checkpoint.every_steps=200")


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


def start(orch: Orch, name: str, steps: int = ENDLESS) -> tuple[RunDir, list[ProcId]]:
    run = orch.launch(*training(name, steps))
    orch.wait_step(run, 100)
    return run, [rank_pid(run, 1, rank) for rank in (0, 1)]


def supervised_by_another(orch: Orch, run: RunDir, before: ProcId) -> None:
    def told() -> bool:
        return supervisor_of(orch, run) != before and lock_is_held(run.supervisor_lock)

    wait_for(told, 600, lambda: orch.story(run))


def goes_on_in_its_first_attempt(orch: Orch, run: RunDir, ranks: list[ProcId], beginning: RunDir) -> None:
    """With the same ranks, and obeys whoever supervises it now."""
    orch.wait_step(run, max(COMPARED, steps_of(run)[-1] + 50))
    assert all(r.alive() for r in ranks), orch.story(run)
    orch("halt", run.run_id)
    assert orch.state(run) == "halted", orch.story(run)
    assert read_json(run.status)["attempt"] == 1 and not run.attempt_dir(2).exists()
    assert steps_of(run) == list(range(1, len(steps_of(run)) + 1))
    assert losses_of(run)[:COMPARED] == losses_of(beginning)[:COMPARED]
    assert not marked(run.run_id)


@pytest.mark.parametrize("word", [pytest.param("gcs_server", marks=pytest.mark.proof), "raylet/raylet"])
def test_ray_dies(orch: Orch, beginning: RunDir, word: str) -> None:
    """The ranks do not notice; Ray is started again and a new supervisor finds them."""
    run, ranks = start(orch, "ray-dies")
    before = supervisor_of(orch, run)
    assert ray_process(orch, word).signal(9)
    wait_for(lambda: not before.alive(), 600, lambda: orch.story(run))
    assert all(r.alive() for r in ranks)
    supervised_by_another(orch, run, before)
    goes_on_in_its_first_attempt(orch, run, ranks, beginning)


def test_agent_keeper_and_supervisor_die_one_after_the_other(orch: Orch, beginning: RunDir) -> None:
    """The keeper comes back without anybody asking, and so does the supervisor."""
    run, ranks = start(orch, "three-die")
    agent = ray_process(orch, "PodAgent")
    assert agent.signal(9)
    wait_for(lambda: not agent.alive(), 180)
    orch.wait_step(run, steps_of(run)[-1] + 200)
    assert all(r.alive() for r in ranks)

    keeper = keeper_of(orch)
    assert keeper.signal(9)
    wait_for(lambda: running(orch.home) is not None and keeper_of(orch) != keeper, 180, lambda: orch.story(run))
    assert not {"RAY_AUTH_MODE", "ORCH_CLUSTER"} & environ_of(keeper_of(orch).pid).keys()

    before = supervisor_of(orch, run)
    assert before.signal(9)
    supervised_by_another(orch, run, before)
    goes_on_in_its_first_attempt(orch, run, ranks, beginning)


def test_keeper_and_ray_die_together_and_a_status_brings_them_back(fresh_orch: Orch) -> None:
    """Nothing of ours is left but the ranks. The next contact starts the keeper, which repairs the rest. `down` refuses
    while the run lives, and then leaves nothing."""
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
    wait_for(lambda: lock_is_held(run.supervisor_lock), 600, lambda: orch.story(run))
    orch("down", code=6)
    orch("halt", "--all")
    assert orch.state(run) == "halted"
    assert read_json(run.status)["attempt"] == 1
    keeper = keeper_of(orch)
    orch("down")
    wait_for(lambda: not keeper.alive(), 180)
    assert not marked(cluster, "ORCH_CLUSTER") and not marked(run.run_id)


@pytest.mark.proof
def test_halt_works_with_ray_dead_and_the_state_follows(fresh_orch: Orch) -> None:
    orch = fresh_orch
    run, ranks = start(orch, "halt-dead")
    cluster = next((orch.home.path / "ray").iterdir()).name
    for ident in marked(cluster, "ORCH_CLUSTER"):
        ident.signal(9)
    run.halt.touch()
    wait_for(lambda: not any(r.alive() for r in ranks), 600, lambda: orch.story(run))
    assert read_json(run.halt_ack(0))["step"] == read_json(run.halt_ack(1))["step"]
    orch.wait(run, "halted", timeout_s=600)
    orch("resume", run.run_id)
    orch.wait(run, "running", timeout_s=600)
    orch("halt", run.run_id)


@pytest.mark.proof
def test_every_rank_dies_again_and_again_and_no_step_is_lost(orch: Orch, undisturbed: RunDir) -> None:
    run, _ = start(orch, "ranks-die", STEPS)
    for attempt in (1, 2, 3):
        wait_for(lambda a=attempt: run.rank_record(a, 1).exists(), 600, lambda: orch.story(run))
        wait_for(lambda a=attempt: any(r["attempt"] == a for r in rows_now(run)), 600, lambda: orch.story(run))
        before = steps_of(run)[-1]
        orch.wait_step(run, before + 210)  # at least one checkpoint further
        assert rank_pid(run, attempt, attempt % 2).signal(9)
    orch.wait(run, "succeeded", "failed", timeout_s=600)
    assert orch.state(run) == "succeeded", orch.story(run)
    assert read_json(run.status)["attempt"] == 4
    assert losses_of(run) == losses_of(undisturbed)
    assert len(restarts_of(run)) == 3


def rows_now(run: RunDir) -> list[dict[str, int]]:
    try:
        return rows(run.ledger)
    except ValueError:
        return []


@pytest.mark.proof
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(orch: Orch, undisturbed: RunDir) -> None:
    run, _ = start(orch, "flipped", STEPS)
    orch.wait_step(run, 450)
    orch("halt", run.run_id)
    newest = sorted(p for p in run.checkpoints.iterdir() if p.name.startswith("step_"))[-1]
    victim = max((p for p in newest.iterdir()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    orch("resume", run.run_id)
    orch.wait(run, "succeeded", "failed", timeout_s=600)
    assert losses_of(run) == losses_of(undisturbed)
    assert newest.name in run.rank_log(0).read_text()
