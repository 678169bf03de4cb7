"""Halt, kill and resume of real two-rank runs: what was computed must be bitwise what an unbroken run computes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.train.harness import Ranks, exactness, launch_ranks, ledger, make_run, train
from workloads.contract.beats import BeatReader
from workloads.contract.files import read_json
from workloads.contract.manifest import hash_file, newest_verified, verify
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase

STEPS = 60
FENCE = 45  # the trainer sees a halt at its next step and stops one later: it never comes to the last one
LONG = {"train": {"steps": STEPS}, "checkpoint": {"every_s": None, "every_steps": 10}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("unbroken"), LONG)
    assert train(run) == [0, 0]
    return run


def halt_at(ranks: Ranks, step: int) -> list[int]:
    ranks.until_step(step)
    ranks.run.halt.touch()
    return ranks.wait()


def test_a_run_tells_what_it_did(unbroken: RunDir) -> None:
    rows = unbroken.training_csv.read_text().splitlines()
    assert rows[0].startswith("step,loss,lr,toks_per_s")
    assert [int(r.split(",")[0]) for r in rows[1:]] == list(range(1, STEPS + 1))
    assert all(all(cell for cell in r.split(",")) for r in rows)
    assert [r["step"] for r in ledger(unbroken)] == list(range(1, STEPS + 1))
    assert read_json(unbroken.env_json)["world_size"] == 2
    assert "step 60 | loss " in unbroken.rank_log(0).read_text()


def test_every_beat_is_a_good_line(unbroken: RunDir) -> None:
    for rank in (0, 1):
        reader = BeatReader(unbroken.heartbeat(rank), rank)
        beats = reader.read()
        assert reader.bad == 0
        assert [b.seq for b in beats] == list(range(len(beats)))
        assert beats[0].msg is Phase.STARTING and beats[0].get("pid") and beats[0].get("boot_id")
        assert beats[-1].msg is Phase.DONE
        assert {Phase.LOADING, Phase.PROGRESS, Phase.CHECKPOINTING} <= {b.msg for b in beats}


def test_newest_checkpoints_are_kept_and_verify(unbroken: RunDir) -> None:
    names = sorted(p.name for p in unbroken.checkpoints.iterdir())
    assert names == ["step_00000050", "step_00000060"]
    path, rejected = newest_verified(unbroken, run_id=unbroken.run_id)
    assert path == unbroken.checkpoint(60) and not rejected


@pytest.mark.long  # tests/local halts and resumes under the whole thread
def test_halt_stops_all_ranks_at_one_step_and_resume_is_bitwise(tmp_path: Path, unbroken: RunDir) -> None:
    run = make_run(tmp_path, LONG)
    with launch_ranks(run, fence=(0, FENCE)) as ranks:
        assert halt_at(ranks, 13) == [75, 75]
    acks = [read_json(run.halt_ack(k)) for k in (0, 1)]
    assert acks[0]["step"] == acks[1]["step"] == len(ledger(run))
    checkpoint = run.checkpoints / acks[0]["checkpoint"]
    assert verify(checkpoint, run_id=run.run_id) == []
    assert acks[0]["hash"] == acks[1]["hash"] == hash_file(run.manifest(checkpoint))[1]

    run.halt.unlink()
    assert train(run, attempt=2) == [0, 0]
    assert exactness(run) == exactness(unbroken)


@pytest.mark.long
def test_sigterm_of_one_rank_halts_all_with_a_stack_dump(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"train": {"steps": 5000}})
    with launch_ranks(run) as ranks:
        ranks.until_step(3)
        ranks.procs[1].send_signal(signal.SIGTERM)
        assert ranks.wait() == [75, 75]
    assert read_json(run.halt_ack(0))["step"] == read_json(run.halt_ack(1))["step"]
    dumps = "".join(p.read_text() for p in run.stackdumps.iterdir())
    assert "rank=1" in dumps and "why=SIGTERM" in dumps and "File " in dumps


@pytest.mark.long  # tests/local kills a rank under the whole thread
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.proof)])
def test_a_killed_rank_costs_nothing_but_time(tmp_path: Path, unbroken: RunDir, victim: int) -> None:
    run = make_run(tmp_path, LONG)
    with launch_ranks(run, fence=(victim, FENCE)) as ranks:
        ranks.until_step(25 + victim)
        os.kill(ranks.procs[victim].pid, signal.SIGKILL)
        codes = ranks.wait()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 75, ranks.log(1 - victim)  # it lost a peer: not its own fault
    assert train(run, attempt=2) == [0, 0]
    assert exactness(run) == exactness(unbroken)
    assert len(run.training_csv.read_text().splitlines()) == STEPS + 1
    cut = run.archived_ledger(1)
    assert not cut.exists() or all(json.loads(x)["attempt"] == 1 for x in cut.read_text().splitlines())


@pytest.mark.parametrize("world", [1, pytest.param(3, marks=pytest.mark.long)])
def test_another_world_size_sees_the_same_global_batches(tmp_path: Path, unbroken: RunDir, world: int) -> None:
    run = make_run(tmp_path, {"train": {"steps": STEPS}, "checkpoint": {"every_steps": None}})
    assert train(run, world=world) == [0] * world
    mine, theirs = ledger(run), ledger(unbroken)
    assert [r["batch_hash"] for r in mine] == [r["batch_hash"] for r in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert float.fromhex(a["loss"]) == pytest.approx(float.fromhex(b["loss"]), rel=1e-5)


@pytest.mark.long
@pytest.mark.proof  # as tests/data/test_trained.py and tests/train/test_parallel.py do, with fewer ranks and in shards
def test_a_run_moves_to_another_world_size(tmp_path: Path, unbroken: RunDir) -> None:
    run = make_run(tmp_path, LONG)
    with launch_ranks(run, world=1, fence=(0, FENCE)) as ranks:
        assert halt_at(ranks, 12) == [75]
    assert 12 <= len(ledger(run)) < STEPS
    run.halt.unlink()
    assert train(run, world=2, attempt=2) == [0, 0]
    assert [r["batch_hash"] for r in ledger(run)] == [r["batch_hash"] for r in ledger(unbroken)]


@pytest.mark.long
def test_accumulation_gives_the_same_batches_and_nearly_the_same_loss(tmp_path: Path, unbroken: RunDir) -> None:
    run = make_run(tmp_path, {"train": {"steps": STEPS, "micro_batch": 3}, "checkpoint": {"every_steps": None}})
    assert train(run) == [0, 0]
    assert [r["batch_hash"] for r in ledger(run)] == [r["batch_hash"] for r in ledger(unbroken)]
    last = float.fromhex(ledger(run)[-1]["loss"])
    assert last == pytest.approx(float.fromhex(ledger(unbroken)[-1]["loss"]), rel=1e-4)


@pytest.mark.long
def test_checkpoints_by_time(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"train": {"steps": 5000}, "checkpoint": {"every_s": 0.5, "every_steps": None}})
    with launch_ranks(run) as ranks:
        ranks.until(lambda: ranks.log(1).count("checkpoint: ") >= 3)
        run.halt.touch()
        assert ranks.wait() == [75, 75]
    assert not list(run.checkpoints.glob(".tmp_*"))


@pytest.mark.parametrize("skips", [3, pytest.param(100, marks=pytest.mark.long)])
def test_a_nan_is_in_no_checkpoint_and_pushes_out_no_good_one(tmp_path: Path, skips: int) -> None:
    """Skipping its steps does not help a run whose weights are spoilt: it is ended, or comes to its end without."""
    nan = {"lr": 1e30, "warmup_steps": 2, "on_nan": {"skips": skips, "total": 100}}
    run = make_run(tmp_path, {"train": nan, "checkpoint": {"every_steps": 1}})
    with launch_ranks(run, world=1) as ranks:
        assert ranks.wait() == [1 if skips == 100 else 77]
        assert "warning: no checkpoint of step 2: loss 5.5" in ranks.log()
        assert "warning: step 2 was skipped: loss 5.54518, grad_norm nan; weights are as they were" in ranks.log()
        if skips == 100:
            assert "warning: no checkpoint of step 20: loss 5.5" in ranks.log()
            assert "error: the last checkpoint could not be saved" in ranks.log()
        else:
            assert "E-TRAIN-012" in ranks.log() and "at most 3 in a row (train.on_nan.skips)" in ranks.log()
    skipped = [row["step"] for row in ledger(run) if row.get("skipped")]
    assert skipped == list(range(skipped[0], len(ledger(run)) + 1))
    assert [p.name for p in run.checkpoints.iterdir()] == ["step_00000001"]
    assert verify(run.checkpoint(1), run_id=run.run_id) == []


BAD_BATCHES = """
import json, math, os, sys
from workloads.train import loop
from workloads.train.__main__ import main

steps, told, update = json.loads(os.environ["TEST_BAD_STEPS"]), [0], loop.update
accumulate = loop.accumulate

def bad(model, optimizer, train, step):
    for p in model.parameters() if step in steps else ():
        p.grad.fill_(math.inf)
    return update(model, optimizer, train, step)

def worse(*args, **kwargs):
    told[0] += 1
    return accumulate(*args, **kwargs) * (math.nan if told[0] in steps else 1)

loop.update = bad
if "TEST_BAD_LOSS" in os.environ:
    loop.accumulate = worse
sys.exit(main())
"""


def with_bad_batches(run: RunDir, steps: list[int], world: int, **more: str) -> list[int]:
    """One attempt whose gradients at these steps are infinite."""
    argv, env = [sys.executable, "-c", BAD_BATCHES], {"TEST_BAD_STEPS": json.dumps(steps), **more}
    with launch_ranks(run, world, argv=argv, env=env) as ranks:
        return ranks.wait()


@pytest.mark.parametrize(("bad", "world"), [([20], 2), ([18, 19, 20], 1)])
def test_a_run_whose_last_steps_are_skipped_comes_to_its_end(tmp_path: Path, bad: list[int], world: int) -> None:
    run = make_run(tmp_path)
    assert with_bad_batches(run, bad, world) == [0] * world
    assert [row["step"] for row in ledger(run) if row.get("skipped")] == bad
    assert verify(run.checkpoint(20), run_id=run.run_id) == []
    assert read_json(run.checkpoint(20) / "trainer.json")["samples"] == 20 * 8
    assert "done: 20 steps" in run.rank_log(0).read_text()


def test_a_last_step_whose_loss_is_no_number_is_not_saved(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert with_bad_batches(run, [20], 1, TEST_BAD_LOSS="1") == [1]
    assert "no checkpoint of step 20: loss nan, grad_norm inf" in run.rank_log(0).read_text()
    assert not run.checkpoint(20).exists() and verify(run.checkpoint(15), run_id=run.run_id) == []


SLOW_VERIFICATION = """
import sys, time
from functools import partial
from datetime import timedelta
from workloads.runtime import newest
from workloads.train import build, machine
from workloads.train.__main__ import main

look, join, reduction = newest._look, machine.dist.init_process_group, build.StepReduction

def slow(checkpointer):
    time.sleep(5)
    return look(checkpointer)

def patient(*args, **more):  # only what waits for the verification is to have the job's timeout
    return join(*args, **{**more, "timeout": timedelta(seconds=600)})

newest._look, machine.dist.init_process_group = slow, patient
build.StepReduction = lambda lanes, device, timeout_s: reduction(lanes, device=device, timeout_s=600.0)
sys.exit(main())
"""


def test_verifying_may_take_longer_than_a_collective_of_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"train": {"steps": 5}})
    assert train(run) == [0, 0]
    make_run(tmp_path, {"train": {"steps": 5}, "runtime": {"process_group_timeout_s": 1}})
    with launch_ranks(run, attempt=2, argv=[sys.executable, "-c", SLOW_VERIFICATION]) as ranks:
        assert ranks.wait() == [0, 0], ranks.story()
