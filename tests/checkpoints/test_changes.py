"""A config that differs from the checkpoint's: refused field by field, or allowed by name and kept on record; and runs
that begin with another run's checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pods.remote.startfrom import find
from tests.checkpoints.killer import NEWEST, OLD, flip
from tests.checkpoints.saver import checkpointer, make_run, save, verified
from tests.cli.conftest import Orch as Command
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run as make_submitted
from tests.supervisor.runs import request
from tests.train.harness import TINY, exactness, launch_ranks, ledger, merged, train
from tests.train.harness import make_run as make_training
from workloads.contract.allowed import is_allowable
from workloads.contract.config.bound import bound_fields, refuse_changes
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import IntegrityError, SpecError
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome, RunDir
from workloads.models.decoder import Decoder
from workloads.runtime.agreement import Agreement
from workloads.runtime.state import TorchState
from workloads.train.optim import make_optimizer

OTHER = "other-20260101T000000Z-beef"


def fields(**train: Any) -> dict[str, Any]:
    return bound_fields(JobSpec.model_validate({"name": "a", "train": train}))


def test_every_field_that_differs_is_named_and_those_allowed_are_told() -> None:
    saved, now = fields(lr=1e-3, steps=100, clip=1.0), fields(lr=2e-3, steps=200, clip=1.0)
    with pytest.raises(SpecError) as e:
        refuse_changes(saved, now, "step_00000010")
    assert "train.lr, train.steps" in e.value.what and "train.lr: 0.001 -> 0.002" in str(e.value.value)
    with pytest.raises(SpecError) as e:
        refuse_changes(saved, now, "step_00000010", {"train.lr"})
    assert "train.lr" not in e.value.what and "--allow-config-change train.steps" in str(e.value.fix)
    changed = {"train.lr": [1e-3, 2e-3], "train.steps": [100, 200]}
    for allowed in ({"all"}, {"train.lr", "train.steps", "model.dim"}):
        assert refuse_changes(saved, now, "step_00000010", allowed) == changed
    assert refuse_changes(saved, saved, "step_00000010") == {}


@pytest.mark.parametrize(
    ("name", "good"),
    [("train.lr", True), ("model.rope_scaling.factor", True), ("corpus", True), ("all", True), ("lr", False),
     ("checkpoint.keep", False), ("train.", False), ("train.lr,all", False), ("", False), (None, False)],
)  # fmt: skip
def test_names_that_can_be_allowed(name: object, good: bool) -> None:
    assert is_allowable(name) == good


# --- ranks

JOB = {"train": {"steps": 20}, "checkpoint": {"every_s": None, "every_steps": 5, "keep": 9}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_training(tmp_path_factory.mktemp("unbroken"), JOB)
    assert train(run, world=1) == [0]
    return run


def beginning_with(root: Path, where: Path, allow: list[str], **job: Any) -> RunDir:
    run = make_training(root, merged(JOB, job))
    row = read_json(run.run_json)
    run.run_json.write_text(json.dumps({**row, "start": {"checkpoint": str(where), "allow": allow}}))
    other = RunDir(root / OTHER)
    run.path.rename(other.path)
    return other


def history(run: RunDir, step: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(run.checkpoint(step) / "trainer.json").get("history", [])
    return found


@pytest.mark.long
def test_a_run_that_begins_with_a_checkpoint_of_another_goes_on_as_that_one_did(
    tmp_path: Path, unbroken: RunDir
) -> None:
    before = sorted(p.name for p in unbroken.checkpoints.iterdir())
    run = beginning_with(tmp_path, unbroken.checkpoint(10), [])
    assert train(run, world=1) == [0]
    assert exactness(run) == exactness(unbroken)[10:]
    (told,) = history(run, 20)
    assert (told["step"], told["from_run"], told["changes"]) == (10, unbroken.run_id, {})
    assert verified(run) == [20, 15] and sorted(p.name for p in unbroken.checkpoints.iterdir()) == before


@pytest.mark.long
def test_changes_of_the_config_are_refused_or_kept_on_record(tmp_path: Path, unbroken: RunDir) -> None:
    changed = {"train": {"steps": 20, "lr": 2e-3}}
    run = beginning_with(tmp_path / "refused", unbroken.checkpoint(10), ["train.clip"], **changed)
    assert train(run, world=1) == [77] and not ledger(run)
    assert "error[E-TRAIN-003]" in run.rank_log(0).read_text() and "train.lr" in run.rank_log(0).read_text()

    run = beginning_with(tmp_path / "allowed", unbroken.checkpoint(10), ["train.lr"], **changed)
    assert train(run, world=1) == [0] and [r["step"] for r in ledger(run)] == list(range(11, 21))
    assert [r["batch_hash"] for r in ledger(run)] == [r["batch_hash"] for r in ledger(unbroken)[10:]]
    assert history(run, 20)[0]["changes"] == {"train.lr": [1e-3, 2e-3]}
    # a plain resume of it has nothing new to tell, and tells it on
    shutil.rmtree(run.checkpoint(20))
    assert train(run, world=1, attempt=2) == [0] and len(history(run, 20)) == 1

    # what `orch resume --allow-config-change` gives the ranks of a run of its own
    row = read_json(run.run_json)
    row["job"]["train"]["lr"] = 3e-3
    run.run_json.write_text(json.dumps({**row, "start": None}))
    shutil.rmtree(run.checkpoint(20))
    assert train(run, world=1, attempt=3) == [77]
    assert train(run, world=1, attempt=4, env={"ORCH_ALLOW_CONFIG_CHANGE": "train.lr"}) == [0]
    assert [h["changes"] for h in history(run, 20)] == [{"train.lr": [1e-3, 2e-3]}, {"train.lr": [2e-3, 3e-3]}]


@pytest.mark.long
def test_a_run_does_not_begin_with_what_is_damaged_or_of_another_shape(tmp_path: Path, unbroken: RunDir) -> None:
    copy = tmp_path / "copy" / "step_00000010"
    shutil.copytree(unbroken.checkpoint(10), copy)
    flip(next(copy.glob("__0_*")), 12345)
    run = beginning_with(tmp_path / "damaged", copy, ["all"])
    assert train(run, world=1) == [77] and "error[E-TRAIN-010]" in run.rank_log(0).read_text()
    run = beginning_with(tmp_path / "shape", unbroken.checkpoint(10), ["all"], model={"dim": 64})
    assert train(run, world=1) == [77] and "error[E-TRAIN-011]" in run.rank_log(0).read_text()


def optimizing(**settings: Any) -> tuple[TorchState, torch.optim.AdamW]:
    """A model and its optimizer as the trainer makes them, and the rank's state of both."""
    job = JobSpec.model_validate_json(json.dumps({"name": "a", "model": TINY["model"], "train": settings}))
    torch.manual_seed(1)
    model = Decoder(job.model, 256)
    optimizer = make_optimizer(model, job.train)
    return TorchState(0, Agreement(), model, optimizer), optimizer


def step_of(optimizer: torch.optim.AdamW) -> torch.Tensor:
    """The first weights after an update with gradients of nothing but ones."""
    for group in optimizer.param_groups:
        for weights in group["params"]:
            weights.grad = torch.ones_like(weights)
    optimizer.step()
    first: torch.Tensor = optimizer.param_groups[0]["params"][0]
    return first.detach().clone()


def test_a_checkpoint_does_not_bring_back_the_settings_that_were_changed(tmp_path: Path) -> None:
    old: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
    saved, optimizer = optimizing(**old)
    step_of(optimizer)
    saved.write(tmp_path)
    weights = []
    for changed in ({}, {"weight_decay": 0.01}, {"betas": [0.8, 0.99]}, {"eps": 0.5}):
        state, optimizer = optimizing(**{**old, **changed})
        state.read(tmp_path)
        job = {**old, **changed}
        told = [(g["weight_decay"], list(g["betas"]), g["eps"]) for g in optimizer.param_groups]
        assert told == [(decay, job["betas"], job["eps"]) for decay in (job["weight_decay"], 0.0)]
        weights.append(step_of(optimizer))
    assert all(not torch.equal(weights[0], other) for other in weights[1:])  # and they are used


ENDS_AT_15 = """
import os, sys
from workloads.train import loop
from workloads.train.__main__ import main

update = loop.update

def ended(model, optimizer, train, step):
    if step == 15:
        os._exit(9)
    return update(model, optimizer, train, step)

loop.update = ended
sys.exit(main())
"""


@pytest.mark.long
def test_a_run_keeps_the_checkpoint_that_it_began_with(tmp_path: Path, unbroken: RunDir) -> None:
    """The other run goes on and removes it; this one ends before it has a checkpoint of its own."""
    source = RunDir(tmp_path / "source")
    shutil.copytree(unbroken.checkpoints, source.checkpoints)
    run = beginning_with(tmp_path, source.checkpoint(10), [], checkpoint={"every_steps": 100})
    with launch_ranks(run, world=1, argv=[sys.executable, "-c", ENDS_AT_15]) as ranks:
        assert ranks.wait() == [9], ranks.story()
    assert [p.name for p in run.start.iterdir()] == ["step_00000010"] and not run.staged_start.exists()
    shutil.rmtree(source.checkpoint(10))
    assert train(run, world=1, attempt=2) == [0]
    assert exactness(run) == exactness(unbroken)[10:]
    (told,) = history(run, 20)
    assert (told["from_run"], told["checkpoint"]) == (unbroken.run_id, str(source.checkpoint(10)))
    assert train(run, world=1, attempt=3) == [0] and not run.start.exists()


@pytest.mark.long
def test_a_checkpoint_that_the_other_run_removed_is_told_as_that(tmp_path: Path, unbroken: RunDir) -> None:
    run = beginning_with(tmp_path, unbroken.checkpoint(7), [])
    assert train(run, world=1) == [77]
    log = run.rank_log(0).read_text()
    assert "error[E-TRAIN-010]" in log and "is not there any more" in log and "step_00000020, step_00000015" in log
    assert f"--resume {unbroken.path}" in log


@pytest.mark.long
def test_a_checkpoint_on_another_disk_is_read_where_it_lies(tmp_path: Path, unbroken: RunDir) -> None:
    if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other disk")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        there = Path(folder) / "step_00000010"
        shutil.copytree(unbroken.checkpoint(10), there)
        run = beginning_with(tmp_path, there, [])
        assert train(run, world=1) == [0]
    assert exactness(run) == exactness(unbroken)[10:]
    assert not run.start.exists() and not run.staged_start.exists()


# --- what a pod finds


def test_a_pod_finds_the_checkpoint_by_path_run_or_id(tmp_path: Path) -> None:
    home = OrchHome(tmp_path / "home")
    run = make_run(home.runs)
    saver = checkpointer(run)
    assert save(saver, OLD) and save(saver, NEWEST)
    for ref, step in ((run.run_id, NEWEST), (str(run.path), NEWEST), (str(run.checkpoint(OLD)), OLD)):
        found = find(home, ref)
        assert (found.path, found.run, found.step) == (run.checkpoint(step), run.run_id, step)
    flip(run.checkpoint(NEWEST) / "__0_0.bin")
    assert find(home, run.run_id).step == OLD
    with pytest.raises(IntegrityError) as damaged:
        find(home, str(run.checkpoint(NEWEST)))
    assert damaged.value.code == "E-LAUNCH-007" and "sha256" in damaged.value.what
    flip(run.checkpoint(OLD) / "__0_0.bin")
    with pytest.raises(IntegrityError):
        find(home, run.run_id)
    empty = make_run(tmp_path / "empty")
    for ref in ("relative/step_00000010", str(tmp_path / "none"), "x-20260101T000000Z-0000", str(empty.path)):
        with pytest.raises(SpecError) as e:
            find(home, ref)
        assert e.value.code == "E-LAUNCH-006"


def test_a_checkpoint_of_a_script_is_no_beginning_of_a_training(tmp_path: Path) -> None:
    home = OrchHome(tmp_path / "home")
    run = make_run(home.runs)
    assert checkpointer(run).save(OLD, {"v": 1, "step": OLD})  # as `Run.step` saves
    for ref in (run.run_id, str(run.checkpoint(OLD))):
        with pytest.raises(SpecError) as e:
            find(home, ref)
        assert e.value.code == "E-LAUNCH-010" and "a script saved it" in e.value.what


# --- the command and the supervisor


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(OrchHome(tmp_path / "home"), tmp_path)
    yield made
    made.close()


def test_the_plan_of_a_launch_names_the_checkpoint(command: Command, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert save(checkpointer(run), OLD)
    place = str(run.checkpoint(OLD))
    asked = ("launch", "tiny", "--dry-run", "--resume", place)
    plan = command(*asked, "--allow-config-change", "train.steps", "--json").json["plan"]
    assert plan["run_json"]["start"] == {
        "checkpoint": place, "run": run.run_id, "step": OLD, "allow": ["train.steps"],
    }  # fmt: skip
    assert f"begins behind step {OLD} of {run.run_id}" in plan["steps"][0] and "train.steps" in plan["steps"][0]
    refused = command(*asked, "--allow-config-change", "steps")
    assert refused.code == 2 and "E-CLI-004" in refused.err
    flip(run.checkpoint(OLD) / "__0_0.bin")
    damaged = command(*asked)
    assert damaged.code == 8 and "E-LAUNCH-007" in damaged.err


SHOW = "import os; print('allowed:', os.environ.get('ORCH_ALLOW_CONFIG_CHANGE', '-'), flush=True)"
Make = Callable[[str], Desk]


def test_what_a_resume_allows_is_an_event_and_reaches_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    argv = [sys.executable, "-c", f"{SHOW}; raise SystemExit(5)"]
    desk = Desk(make_submitted(OrchHome(tmp_path / "home"), argv, restart={"max": 0, "backoff_s": [0]}))
    try:
        desk.until("failed")
        request(desk.run, "resume", "one", args={"allow": ["train.lr", "corpus"]})
        desk.until("failed", 2)
        desk.again()  # a supervisor that came back knows it too
        assert desk.engine._acting.spec.allowed == ("train.lr", "corpus")
        request(desk.run, "resume", "two")  # said once, for one resume
        desk.until("failed", 3)
        request(desk.run, "resume", "odd", args={"allow": ["; rm -rf"]})
        desk.turn(lambda: len(list(desk.run.requests.glob("*.ack.json"))) == 3)
    finally:
        desk.close()
    told = [line for line in desk.run.rank_log(0).read_text().splitlines() if line.startswith("allowed:")]
    assert told == ["allowed: -", "allowed: train.lr,corpus", "allowed: -"]
    resumed = [e["data"] for e in desk.events("state") if e["to"] == "resuming"]
    assert [d.get("allow") for d in resumed] == [["train.lr", "corpus"], None]  # type: ignore[attr-defined]
    acks = [read_json(p) for p in desk.run.requests.glob("*-odd.ack.json")]
    assert [a["ok"] for a in acks] == [False] and "not a list of fields" in acks[0]["why"]
