"""`orch resume --set`: the job of the next attempt, what of it is refused, and what the request says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.jobs.rejob import SETTLED, NewJob, new_job
from orchestrator.runs.views import RunView, snapshot
from pods.remote import control
from pods.remote.dispatch import dispatch
from tests.checkpoints.saver import checkpointer, save
from tests.cli.conftest import Made, make_run
from workloads.contract.config.bound import bound_fields
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import ConflictError, ErrorGroup, IntegrityError, LocalError, SpecError, UsageError
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.rundir import OrchHome, RunDir

JOB: dict[str, Any] = {"name": "tiny", "train": {"steps": 100, "lr": 1e-3, "warmup_steps": 5}}


def made(home: OrchHome, job: dict[str, Any] | None = None, **more: Any) -> Made:
    run = make_run(home, **more)
    spec = JobSpec.model_validate_json(json.dumps(JOB if job is None else job))
    row = read_json(run.run.run_json) | {"job": spec.model_dump(mode="json"), "kind": spec.kind, "tree": "/x/0123"}
    atomic_write_json(run.run.run_json, row)
    return run


FREE = (
    "train.log_every=5", "checkpoint.every_s=60", "health.mode=observe", "eval.samples=8", "train.compile=false",
    "data.read_tries=2", "restart.max=1", "halt.grace_s=5", "logs.max_gb=1",
)  # fmt: skip


def view_of(run: RunDir) -> RunView:
    return snapshot(run, time.time())


def codes(error: Exception) -> list[str]:
    return [e.code for e in error.errors] if isinstance(error, ErrorGroup) else [getattr(error, "code", "-")]


def test_the_diff_is_what_was_asked_for(tmp_path: Path) -> None:
    run = made(OrchHome(tmp_path)).run
    new = new_job(view_of(run), ["train.lr=1e-4", "checkpoint.every_s=null", "env.NCCL_DEBUG=INFO", "train.steps=100"])
    assert new.changes == {
        "train.lr": {"was": 1e-3, "is": 1e-4}, "checkpoint.every_s": {"was": 600.0, "is": None},
        "env.NCCL_DEBUG": {"is": "INFO"},
    }  # fmt: skip
    assert new.spec.train.lr == 1e-4 and new_job(view_of(run), ["train.lr=0.001"]).changes == {}


def test_mistakes_are_told_at_once_and_with_the_option(tmp_path: Path) -> None:
    run = made(OrchHome(tmp_path)).run
    sets = ["train.stepz=3", "pods=[x]", "resources.ranks=4", "train.lr=-1", "train.global_batch=7"]
    with pytest.raises(ErrorGroup) as e:
        new_job(view_of(run), sets)
    assert sorted(codes(e.value)) == ["E-JOB-004", "E-JOB-007", "E-JOB-008", "E-RESUME-006", "E-RESUME-006"]
    assert {o.where for o in e.value.errors} == {f"--set {s}" for s in sets}
    (batch,) = [o for o in e.value.errors if o.code == "E-JOB-008"]  # the run has two ranks
    assert "a multiple of 2 (ranks)" in str(batch.expected)
    for key in SETTLED:
        with pytest.raises(UsageError):
            new_job(view_of(run), [f"{key}=x"])
    with pytest.raises(UsageError) as e2:
        new_job(view_of(run), ["train.lr"])
    assert e2.value.code == "E-SET-001"


def test_other_kinds_and_commands_of_any_bytes_can_be_changed(tmp_path: Path) -> None:
    run = made(OrchHome(tmp_path), {"name": "tiny", "kind": "command", "command": ["python", "x.py"]}, kind="command")
    row = read_json(run.run.run_json)
    row["job"]["command"][1] = "caf\udce9.py"
    run.run.run_json.write_text(json.dumps(row))
    assert new_job(view_of(run.run), ["restart.max=9"]).changes == {"restart.max": {"was": 3, "is": 9}}
    with pytest.raises(SpecError) as e:
        new_job(view_of(run.run), ["train.steps=9"])
    assert "no effect" in e.value.what


def test_a_job_that_this_orch_cannot_read_is_left_alone(tmp_path: Path) -> None:
    run = made(OrchHome(tmp_path)).run
    atomic_write_json(run.run_json, read_json(run.run_json) | {"job": {"name": "tiny", "future": 1}})
    with pytest.raises(IntegrityError) as e:
        new_job(view_of(run), ["train.lr=1"])
    assert e.value.code == "E-RESUME-007" and "future" in e.value.what


def test_changes_that_no_attempt_began_with_count(tmp_path: Path) -> None:
    m = made(OrchHome(tmp_path))
    m.event(1, "state", to="resuming", data={"request": "a", "changes": {"train.lr": {"was": 1e-3, "is": 5e-4}}})
    assert new_job(view_of(m.run), ["train.lr=1e-4"]).changes == {"train.lr": {"was": 5e-4, "is": 1e-4}}
    m.event(2, "state", to="starting", attempt=2)
    m.run.attempt_dir(2).mkdir()
    job = read_json(m.run.run_json)["job"]
    job["train"]["lr"] = 5e-4
    atomic_write_json(m.run.attempt_job(2), {"v": 1, "attempt": 2, "changes": {}, "job": job})
    m.status("failed", attempt=2)
    assert new_job(view_of(m.run), ["train.lr=1e-4"]).changes == {"train.lr": {"was": 5e-4, "is": 1e-4}}


def asked(run: RunDir, *sets: str, checkpoint: dict[str, Any] | None = None, allowed: tuple[str, ...] = ()) -> NewJob:
    new = new_job(view_of(run), sets)
    config = bound_fields(JobSpec.model_validate_json(json.dumps(checkpoint or JOB)))
    new.refuse_unallowed(config, "step_00000010", allowed)
    return new


def test_what_the_checkpoint_binds_has_to_be_allowed(tmp_path: Path) -> None:
    run = made(OrchHome(tmp_path)).run
    for free in FREE:
        assert asked(run, free).changes
    with pytest.raises(SpecError) as e:
        asked(run, "train.lr=1e-4", "data.seq_len=64", "train.log_every=5", allowed=("data.seq_len",))
    assert e.value.code == "E-TRAIN-003" and e.value.value == "train.lr: 0.001 -> 0.0001"
    assert asked(run, "train.lr=1e-4", allowed=("train.lr",)).changes
    # the checkpoint decides, not what the job was last: back to what it was written with needs no word
    older = {**JOB, "train": {**JOB["train"], "lr": 1e-4}}
    assert asked(run, "train.lr=1e-4", checkpoint=older).changes


def test_steps_are_free_where_the_learning_rate_does_not_fall_over_them(tmp_path: Path) -> None:
    run = made(OrchHome(tmp_path)).run
    with pytest.raises(SpecError) as e:
        asked(run, "train.steps=200")
    assert "the learning rate falls over it" in str(e.value.expected)
    flat = {**JOB, "train": {**JOB["train"], "min_lr_ratio": 1.0}}
    level = made(OrchHome(tmp_path / "flat"), flat).run
    assert asked(level, "train.steps=200", checkpoint=flat).changes
    with pytest.raises(SpecError) as e:  # the one it was written with fell
        asked(level, "train.steps=200", "train.min_lr_ratio=0.5", checkpoint=flat)
    assert "train.min_lr_ratio, train.steps" in e.value.what


def test_the_pod_tells_the_config_of_the_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    home = OrchHome(tmp_path)
    m = made(home)
    args = {"run": m.run.run_id}
    assert dispatch(home, "runs.config", args, b"").fields == {}
    m.run.epoch.write_text("1\n")
    saver = checkpointer(m.run)
    first, second = save(saver, 10), save(saver, 20)
    assert first and second
    told = dispatch(home, "runs.config", args, b"").fields
    assert told == {"checkpoint": second.name, "step": 20, "config": {}}
    assert dispatch(home, "runs.config", args | {"checkpoint": first.name}, b"").fields["step"] == 10
    (second / "__0_0.bin").unlink()
    assert dispatch(home, "runs.config", args, b"").fields["step"] == 10


def test_the_request_holds_the_changes_and_is_one(tmp_path: Path) -> None:
    home = OrchHome(tmp_path)
    m = made(home)
    m.status("failed")
    tree = tmp_path / "tree"
    (tree / control.CHANGES_JOBS).parent.mkdir(parents=True)
    atomic_write_json(m.run.run_json, read_json(m.run.run_json) | {"tree": str(tree)})
    changes = {"train.lr": {"was": 1e-3, "is": 1e-4}}
    with pytest.raises(LocalError) as older:
        control.resume(m.run, who="ada", why="", changes=changes)
    assert older.value.code == "E-CTL-008" and "--set KEY=VALUE --code current" in str(older.value.fix)
    (tree / control.CHANGES_JOBS).touch()
    request = control.resume(m.run, who="ada", why="", changes=changes)
    assert read_json(request)["args"] == {"code": "run", "changes": changes}
    assert control.resume(m.run, who="ada", why="", changes=changes) == request
    with pytest.raises(ConflictError) as other:
        control.resume(m.run, who="ada", why="", changes={"train.lr": {"was": 1e-3, "is": 2e-4}})
    assert other.value.code == "E-CTL-007" and "other changes" in other.value.what
