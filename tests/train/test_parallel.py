"""Real ranks in shards and replicated, compiled and not: the same losses, and checkpoints that either reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.estimaterun import of_run
from orchestrator.runs.views import snapshot
from tests.train.harness import exactness, launch_ranks, ledger, make_run, train
from workloads.contract.beats import BeatReader
from workloads.contract.config.job import JobSpec
from workloads.contract.files import read_json
from workloads.contract.manifest import verify
from workloads.contract.rundir import RunDir

SHORT = {"steps": 6, "global_batch": 8, "lr": 3e-3, "clip": 0.3, "dtype": "fp32"}
COMPILED_S = 900.0
"""Inductor's C++ takes half a minute on an idle core, and some on a busy one."""


def job(every: int = 100, **fields: Any) -> dict[str, Any]:
    return {"train": {**SHORT, **fields}, "checkpoint": {"every_steps": every}}


def trained(run: RunDir, world: int, attempt: int = 1) -> RunDir:
    codes = train(run, world=world, attempt=attempt, timeout_s=COMPILED_S)
    assert codes == [0] * world, run.rank_log(0).read_text()
    return run


def losses(run: RunDir) -> list[float]:
    return [float.fromhex(row["loss"]) for row in ledger(run)]


@pytest.mark.long
def test_shards_and_replicas_train_alike_to_the_last_bit(tmp_path: Path) -> None:
    """fp32, two ranks, gradients over two micro batches, clipped; in shards with activations computed twice: every loss
    has the same bits."""
    whole = trained(make_run(tmp_path / "ddp", job(micro_batch=2)), 2)
    sparing = job(micro_batch=2, parallel="fsdp2", activation_checkpointing=True)
    shards = trained(make_run(tmp_path / "fsdp2", sparing), 2)
    assert exactness(shards) == exactness(whole) and len(ledger(whole)) == 6
    norms = [[line.split(",")[4] for line in run.training_csv.read_text().splitlines()[1:]] for run in (whole, shards)]
    assert norms[0] == norms[1] and float(norms[0][0]) > 0.3
    assert [read_json(run.env_json)["parallel"] for run in (whole, shards)] == ["ddp", "fsdp2"]
    assert all(read_json(run.env_json)["compiled"] == "no" for run in (whole, shards))


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("fsdp2", 2), ("ddp", 1)),
        pytest.param(("ddp", 1), ("fsdp2", 2), marks=pytest.mark.proof),
        (("fsdp2", 2), ("fsdp2", 3)),
    ],
)
def test_a_checkpoint_of_shards_goes_on_whole_and_back(
    tmp_path: Path, first: tuple[str, int], then: tuple[str, int]
) -> None:
    """The job is the run's own but for `parallel`, which no checkpoint binds; weights and moments came over."""
    unbroken = trained(make_run(tmp_path / "unbroken", job(steps=12)), 1)
    root = tmp_path / "moved"
    run = make_run(root, job(every=3, steps=12, parallel=first[0]))
    with launch_ranks(run, world=first[1], fence=(0, 8)) as ranks:
        ranks.until_step(4)
        run.halt.touch()
        assert ranks.wait() == [75] * first[1], ranks.log()
    halted = len(ledger(run))
    assert verify(run.checkpoint(halted), run_id=run.run_id) == []
    run.halt.unlink()
    make_run(root, job(every=3, steps=12, parallel=then[0]))
    trained(run, then[1], attempt=2)
    assert f"resume: step {halted} from" in run.rank_log(0).read_text()
    assert [r["world_size"] for r in ledger(run)] == [first[1]] * halted + [then[1]] * (12 - halted)
    assert [r["batch_hash"] for r in ledger(run)] == [r["batch_hash"] for r in ledger(unbroken)]
    assert losses(run) == pytest.approx(losses(unbroken), rel=1e-5)


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.parametrize(("parallel", "world"), [("ddp", 1), ("ddp", 2), ("fsdp2", 2)])
def test_a_compiled_run_that_is_killed_goes_on_to_the_last_bit(tmp_path: Path, parallel: str, world: int) -> None:
    compiled = job(every=3, steps=10, micro_batch=3, compile="on", compile_mode="aot_eager", parallel=parallel)
    whole = trained(make_run(tmp_path / "whole", compiled), world)
    assert read_json(whole.env_json)["compiled"] == ("model" if world == 1 else "blocks")
    phases = [b.msg for b in BeatReader(whole.heartbeat(0), 0).read()]
    assert [p for p in dict.fromkeys(phases)][:3] == ["starting", "loading", "compiling"]
    plain = trained(make_run(tmp_path / "plain", job(steps=10, micro_batch=3, parallel=parallel)), world)
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-5)
    run = make_run(tmp_path / "killed", compiled)
    with launch_ranks(run, world=world) as ranks:
        ranks.until(lambda: len(ledger(run)) >= 5, timeout_s=COMPILED_S)
        ranks.procs[0].kill()
        ranks.wait()
    trained(run, world, attempt=2)
    assert exactness(run) == exactness(whole)


@pytest.mark.long
@pytest.mark.proof
def test_code_that_is_made_for_this_cpu(tmp_path: Path) -> None:
    """Inductor's C++, kept in the home: the second run finds it there, and comes to the same bits."""
    home = tmp_path / "home"
    runs = []
    for name in ("first", "second"):
        run = make_run(tmp_path / name, job(steps=4, compile="on"))
        codes = train(run, world=1, env={"ORCH_HOME": str(home)}, timeout_s=COMPILED_S)
        assert codes == [0], run.rank_log(0).read_text()
        assert read_json(run.env_json)["compiled"] == "model"
        runs.append(run)
    assert exactness(runs[0]) == exactness(runs[1]) and any((home / "cache" / "inductor").rglob("*.so"))
    plain = trained(make_run(tmp_path / "plain", job(steps=4)), 1)
    assert losses(runs[0]) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.long
def test_a_run_beside_what_was_estimated_of_it(tmp_path: Path) -> None:
    run = trained(make_run(tmp_path, job()), 1)
    row = read_json(run.run_json)
    found, took = of_run(snapshot(run, now=0.0))
    assert found.job == JobSpec.model_validate(row["job"] | {"kind": "train"}) and took.gpu is None
    assert took.mfu is None and took.checkpoint_bytes
    assert took.checkpoint_bytes == pytest.approx(found.checkpoint_bytes, rel=0.5)  # a small one has more of the rest
