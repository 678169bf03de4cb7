"""The whole thread on this machine: launch, train, halt, resume, exactness. Real Ray, real ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.local.conftest import CPUS, Orch, losses_of, rank_pid, restarts_of, rows, steps_of, wait_for
from workloads.contract.files import read_json
from workloads.contract.process import marked
from workloads.contract.rundir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.skipif(CPUS < 2, reason="two ranks need two CPUs")]

SMALL = (
    "--set", "model.dim=64", "--set", "model.layers=2", "--set", "model.heads=2", "--set", "model.kv_heads=1",
    "--set", "data.seq_len=64", "--set", "train.global_batch=8", "--set", "train.warmup_steps=5",
    "--set", "checkpoint.every_steps=20",
)  # fmt: skip


def small(steps: int, name: str) -> tuple[str, ...]:
    return ("tiny", "--name", name, "--set", f"train.steps={steps}", *SMALL)


@pytest.fixture(scope="session")
def unbroken(orch: Orch) -> RunDir:
    """A run of 160 steps that nothing disturbed: what a resumed one must equal bit for bit."""
    run = orch.launch(*small(160, "unbroken"))
    orch.wait(run, "succeeded", "failed")
    return run


def test_a_run_succeeds_and_leaves_everything_the_design_names(orch: Orch, unbroken: RunDir) -> None:
    row = orch.status(unbroken)
    assert row["state"] == "succeeded" and row["step"] == row["steps"] == 160
    assert row["exit_codes"] == {"0": 0, "1": 0}
    assert set(row) == {
        "run", "name", "state", "reason", "attempt", "step", "steps", "loss", "toks_per_s", "pods",
        "last_beat_age_s", "exit_codes", "pod_reachable", "seen_age_s",
    }  # fmt: skip
    losses = [float.fromhex(r["loss"]) for r in rows(unbroken.ledger)]
    assert losses[-1] < losses[0] - 1.0
    for path in (unbroken.run_json, unbroken.resolved_config, unbroken.env_json, unbroken.training_csv):
        assert path.is_file(), path
    for rank in (0, 1):
        assert unbroken.heartbeat(rank).is_file() and unbroken.rank_log(rank).is_file()
    assert sorted(p.name for p in unbroken.checkpoints.iterdir())[-1] == unbroken.checkpoint(160).name
    assert unbroken.path.stat().st_mode & 0o777 == 0o700
    assert not marked(unbroken.run_id)


def test_training_csv_has_no_empty_field(unbroken: RunDir) -> None:
    header, *lines = unbroken.training_csv.read_text().splitlines()
    assert header.startswith("step,loss,lr,toks_per_s")
    assert [int(line.split(",")[0]) for line in lines] == list(range(1, 161))
    assert all(cell for line in lines for cell in line.split(","))


def test_launching_the_same_id_twice_is_one_run(orch: Orch, unbroken: RunDir) -> None:
    again = orch.json("launch", *small(160, "unbroken"), "--id", unbroken.run_id)
    assert again["run"] == unbroken.run_id and again["created"] is False
    assert orch.status(unbroken)["attempt"] == 1


def test_halted_by_hand_and_resumed_is_bitwise_the_unbroken_run(orch: Orch, unbroken: RunDir) -> None:
    run = orch.launch(*small(160, "byhand"))
    orch.wait_step(run, 30)
    run.halt.touch()
    orch.wait(run, "halted")
    acks = [read_json(run.halt_ack(rank)) for rank in (0, 1)]
    assert acks[0]["step"] == acks[1]["step"] < 160
    assert acks[0]["checkpoint"] == run.checkpoint(acks[0]["step"]).name
    assert acks[0]["hash"] == acks[1]["hash"] and len(acks[0]["hash"]) == 64
    assert not marked(run.run_id)
    orch("resume", run.run_id)
    orch.wait(run, "succeeded")
    assert run.archived_halt(1).is_file() and not run.halt.exists()
    assert losses_of(run) == losses_of(unbroken)
    assert {r["attempt"] for r in rows(run.ledger)} == {1, 2}


def test_halt_by_command_queues_nothing_and_names_the_checkpoint(orch: Orch) -> None:
    run = orch.launch(*small(5000, "bycommand"))
    orch.wait_step(run, 5)
    shown = orch.json("halt", run.run_id, "--why", "dinner")
    assert shown["runs"][0]["state"] == "halted"
    step = read_json(run.halt_ack(0))["step"]
    assert run.manifest(run.checkpoint(step)).is_file()
    assert "dinner" in str(read_json(run.status)["reason"])
    orch("halt", run.run_id)  # again: nothing left to do, and no error


@pytest.mark.long
def test_a_killed_rank_restarts_from_the_newest_checkpoint(orch: Orch, unbroken: RunDir) -> None:
    run = orch.launch(*small(160, "rankkill"))
    orch.wait_step(run, 45)
    assert rank_pid(run, 1, 1).signal(9)
    orch.wait(run, "succeeded", "failed")
    assert orch.state(run) == "succeeded", orch.story(run)
    assert losses_of(run) == losses_of(unbroken)
    assert read_json(run.rank_record(1, 1))["signal"] == 9
    assert ["rank 1 was killed by signal 9" in why for why in restarts_of(run)] == [True], restarts_of(run)
    assert read_json(run.status)["attempt"] == 2


@pytest.mark.long
def test_a_busy_cluster_queues_and_says_behind_whom(orch: Orch) -> None:
    first = orch.launch(*small(100_000, "first"))
    orch.wait(first, "running", "starting")
    second = orch.launch(*small(10, "second"))
    orch.wait(second, "queued")
    wait_for(lambda: first.run_id in orch.status(second)["reason"], 180, lambda: orch.story(second))
    third = orch.launch(*small(10, "third"))
    orch("halt", third.run_id)
    assert orch.state(third) == "halted" and steps_of(third) == []
    orch("halt", first.run_id, "--now")
    orch.wait(second, "succeeded")


def test_killing_the_cli_after_submission_harms_nothing(orch: Orch) -> None:
    process = orch.popen("launch", *small(40, "cli-killed"), "--follow")

    def submitted() -> list[Path]:
        return list(orch.home.runs.glob("cli-killed-*"))

    wait_for(submitted, 600)
    process.kill()
    assert process.wait(timeout=120) == -signal.SIGKILL  # it followed: it did not end by itself before
    run = RunDir(submitted()[0])
    orch.wait(run, "succeeded", "failed")
    assert orch.state(run) == "succeeded" and len(submitted()) == 1, orch.story(run)
    assert steps_of(run) == list(range(1, 41)) and read_json(run.status)["attempt"] == 1


@pytest.mark.long
def test_following_shows_the_run_to_its_end(orch: Orch) -> None:
    shown = orch("launch", *small(30, "followed"), "--follow")
    assert "succeeded" in shown and "followed-" in shown and "orch logs" in shown
    text = orch("status", "followed")
    assert "succeeded" in text and "step" in text


def test_status_of_everything_and_logs(orch: Orch, unbroken: RunDir) -> None:
    assert unbroken.run_id in orch("status", "unbroken")
    assert unbroken.run_id in orch("runs")
    document = orch.json("runs")
    assert document["v"] == 1 and unbroken.run_id in json.dumps(document)
    log = orch("logs", "unbroken", "--rank", "0")
    assert "step 160 | loss" in log
    assert "step 160 | loss" in unbroken.rank_log(0).read_text()


def test_a_refused_configuration_fails_at_once_and_so_do_data_that_are_not_there(orch: Orch) -> None:
    tokenizer = orch.work / "tokenizer.json"
    tokenizer.write_text("{}")
    refused = orch.launch(*small(20, "refused"), "--set", f"data.tokenizer={tokenizer}")
    missing = orch.launch(*small(20, "missing"), "--set", "data.source=text", "--set", "data.path=/nonexistent/corpus")
    words_of_missing = "the data are not there (E-DATA-001, /nonexistent/corpus)"
    for run, code, words in ((refused, 77, ""), (missing, 1, words_of_missing)):
        status = orch.wait(run, "failed", "succeeded")
        assert status["state"] == "failed" and set(status["exit_codes"].values()) == {code}, status
        assert words in status["reason"] and status["attempt"] == 1, status


def test_recipes_launch_from_anywhere(orch: Orch) -> None:
    """A dry run touches nothing."""
    before = sorted(orch.home.runs.iterdir())
    text = orch("launch", "tiny", "--dry-run")
    assert "workloads.train" in text
    assert sorted(orch.home.runs.iterdir()) == before
