"""Training on a pod over SSH by its commands: verify-resume, export, launch --resume, resume --checkpoint, smoke."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.ledgers import first_unlike, read_ledger, read_lost
from tests.far.conftest import POD, Far
from tests.local.conftest import events_of, losses_of, steps_of
from workloads.contract.files import read_json
from workloads.contract.manifest import committed, verify
from workloads.contract.rundir import OrchHome, RunDir

pytestmark = [pytest.mark.ray, pytest.mark.long]
SMALL = ("tiny", *(w for s in (
    "resources.ranks=1", "model.dim=64", "model.layers=2", "data.seq_len=64", "train.warmup_steps=2",
    "train.global_batch=4",
) for w in ("--set", s)))  # fmt: skip
STEPS = 24
LONG_S = 900.0


def told_of(far: Far, *words: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(far.orch(*words, "--json", timeout_s=LONG_S))
    return row


@pytest.fixture(scope="module")
def verified(far: Far) -> dict[str, Any]:
    return told_of(far, "verify-resume", *SMALL, "--pod", POD, "--kills", "1", "--steps", str(STEPS), "--seed", "3")


@pytest.fixture
def unbroken(far: Far, verified: dict[str, Any]) -> RunDir:
    return far.run_there(verified["runs"]["unbroken"]["run"])


def test_a_kill_there_is_equal_by_the_ledgers_brought_home(
    far: Far, verified: dict[str, Any], unbroken: RunDir
) -> None:
    assert (verified["verdict"], verified["pod"], verified["world_size"]) == ("equal", POD, 1)
    killed = far.run_there(verified["runs"]["killed"]["run"])
    assert len(verified["kills"]) == 1 and read_json(killed.status)["attempt"] == 2
    assert losses_of(killed) == losses_of(unbroken) and len(losses_of(killed)) == STEPS
    for run in (killed, unbroken):
        assert far.mirror(run.run_id).ledger.read_bytes() == run.ledger.read_bytes()
    assert verified["made_again"] == len(read_lost(killed.archived_ledger(1)))


def test_the_weights_come_home_whole(far: Far, unbroken: RunDir, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = told_of(far, "export", unbroken.run_id, "--out", str(tmp_path / "model"))
    assert (made["step"], made["dir"]) == (STEPS, str(tmp_path / "model"))
    for file in made["files"]:
        assert hashlib.sha256((tmp_path / "model" / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(t.numel() for t in weights.values()) == made["parameters"]
    assert read_json(tmp_path / "model" / "config.json")["hidden_size"] == 64
    assert [p for p in (far.there.home.path / "exports").glob("*")] == []  # nothing stays there


def test_new_runs_begin_with_it_by_run_and_by_path(far: Far, unbroken: RunDir) -> None:
    job = (*SMALL, "--set", "train.deterministic=true", "--set", "checkpoint.every_s=null")
    older = min(committed(unbroken))
    again = far.launch(*job, "--set", f"train.steps={STEPS}", "--resume", str(older))
    more = far.launch(
        *job, "--set", f"train.steps={STEPS + 4}", "--resume", unbroken.run_id, "--allow-config-change", "train.steps"
    )
    for run in (again, more):
        far.there.wait(run, "succeeded", "failed")
    step = read_json(RunDir.manifest(older))["step"]
    assert losses_of(again) == losses_of(unbroken)[step:] != [], far.there.story(again)
    assert steps_of(more) == list(range(STEPS + 1, STEPS + 5)), far.there.story(more)
    assert read_json(far.there.home.run(more.run_id).run_json)["start"]["run"] == unbroken.run_id
    assert verify(older) == []
    row = json.loads(far.orch("launch", "tiny", "--pod", "local", "--resume", unbroken.run_id, "--json", code=2))
    assert (row["error"]["code"], row["error"]["fix"]) == ("E-LAUNCH-009", f"--pod {POD}")
    row = json.loads(far.orch("launch", "tiny", "--pod", POD, "--resume", "./step_00000003", "--json", code=2))
    assert row["error"]["code"] == "E-LAUNCH-008"


def test_back_to_an_older_checkpoint_there(far: Far, tmp_path: Path) -> None:
    orch, there = far.orch, far.there
    job = (*SMALL, "--set", "train.steps=100000", "--set", "checkpoint.every_steps=5", "--set", "checkpoint.keep=4")
    run = far.launch(*job, "--name", "back")
    there.wait_step(run, 16)
    orch("halt", run.run_id)
    *newer, named = [p.name for p in committed(run)][:3]
    first, last = int(named.removeprefix("step_")), steps_of(run)[-1]
    wrong = json.loads(orch("resume", run.run_id, "--checkpoint", "99999999", "--json", code=2))["error"]
    assert wrong["code"] == "E-RESUME-004" and named in wrong["expected"]
    told = told_of(far, "resume", run.run_id, "--checkpoint", str(first))
    assert (told["checkpoint"], told["set_aside"], told["acknowledged"]) == (named, newer, True)
    there.wait_step(run, last + 1)
    orch("halt", run.run_id)
    (note,) = [e for e in events_of(run, "note") if "set aside" in e["why"]]
    assert note["data"]["checkpoints"] == newer
    assert sorted(p.name for p in run.checkpoints.glob("aside_*")) == sorted(f"aside_{name}_a1" for name in newer)
    for name in newer:  # whole, as they were
        shutil.copytree(run.checkpoints / f"aside_{name}_a1", tmp_path / name)
        assert verify(tmp_path / name) == []
    assert steps_of(run) == list(range(1, steps_of(run)[-1] + 1))
    lost = read_lost(run.archived_ledger(1))
    assert [r.step for r in lost] == list(range(first + 1, last + 1))
    assert first_unlike(lost, read_ledger(run.ledger)) is None  # made again, bit for bit
    assert orch.status(run)["state"] == "halted"


def test_the_job_of_the_next_attempt_is_changed_there(far: Far) -> None:
    orch, there = far.orch, far.there
    run = far.launch(*SMALL, "--set", "train.steps=100000", "--set", "checkpoint.every_steps=5", "--name", "changed")
    there.wait_step(run, 6)
    orch("halt", run.run_id)
    halted = steps_of(run)[-1]
    sets = ("--set", "train.lr=0.0001", "--set", "train.log_every=1", "--set", "health.mode=observe")
    wrong = json.loads(orch("resume", run.run_id, *sets, "--json", code=2))["error"]
    assert wrong["code"] == "E-TRAIN-003" and wrong["value"].startswith("train.lr:")
    assert [e for e in events_of(run, "state") if e["to"] == "resuming"] == []  # nobody was asked
    told = told_of(far, "resume", run.run_id, *sets, "--allow-config-change", "train.lr")
    assert set(told["changes"]) == {"train.lr", "train.log_every", "health.mode"}
    there.wait_step(run, halted + 3)
    orch("halt", run.run_id)
    log = run.rank_log(0).read_text()
    assert f"resume: train.lr was 0.002 and is 0.0001 from step {halted + 1} on" in log
    assert "job: train.log_every 10 -> 1, changed by a resume" in log and f"step {halted + 2} |" in log
    assert read_json(run.attempt_job(2)) == read_json(far.mirror(run.run_id).attempt_job(2))
    assert "train.lr 0.002 -> 0.0001" in orch("why", run.run_id)
    orch("resume", run.run_id)  # what was changed stays, and need not be allowed again
    there.wait_step(run, steps_of(run)[-1] + 1)
    orch("halt", run.run_id)
    assert read_json(run.attempt_job(3))["job"]["train"]["lr"] == 0.0001
    assert read_json(run.run_json)["job"]["train"]["lr"] == 0.002


@pytest.mark.proof
def test_a_smoke_there_is_judged_here(far: Far) -> None:
    job = (*SMALL, "--set", "train.lr=0.01")
    found = told_of(far, "smoke", *job, "--pod", POD, "--steps", "120", "--save-baseline", "base.json", "--file-report")
    assert (found["verdict"], found["pod"], found["run"] is not None) == ("go", POD, True), found
    assert Path(found["report"]).is_file() and (far.orch.work / "base.json").is_file()
    home: OrchHome = far.orch.home
    assert not home.run(found["run"]).path.exists() and far.mirror(found["run"]).training_csv.is_file()
    again = told_of(far, "smoke", "--run", found["run"])
    assert again["verdict"] == "go"
