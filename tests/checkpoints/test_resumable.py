"""What is looked at before anybody is asked to resume a run, and what is left to its ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pods.remote import resumable
from pods.remote.resumable import refuse_unresumable
from tests.checkpoints.killer import NEWEST, OLD, flip
from tests.checkpoints.saver import checkpointer, make_run, save
from workloads.contract.errors import IntegrityError
from workloads.contract.files import atomic_write_json
from workloads.contract.rundir import RunDir
from workloads.train.resume import choose


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path)
    saver = checkpointer(made)
    assert save(saver, OLD) and save(saver, NEWEST)
    return made


def damage(run: RunDir, *steps: int) -> None:
    for step in steps:
        flip(run.checkpoint(step) / "__0_0.bin")


def test_one_good_checkpoint_is_enough_and_so_is_none_at_all(run: RunDir) -> None:
    damage(run, NEWEST)
    refuse_unresumable(run)
    shutil.rmtree(run.checkpoints)
    refuse_unresumable(run)
    run.checkpoints.mkdir()
    refuse_unresumable(run)


def test_every_damaged_one_is_named(run: RunDir) -> None:
    damage(run, NEWEST, OLD)
    with pytest.raises(IntegrityError) as e:
        refuse_unresumable(run)
    assert e.value.code == "E-RESUME-002" and e.value.exit_code == 8
    for step in (NEWEST, OLD):
        assert f"step_{step:08d}: __0_0.bin does not match its sha256" in e.value.what


def test_what_only_was_rejected_earlier_does_not_start_over(run: RunDir) -> None:
    damage(run, NEWEST)
    assert choose(checkpointer(run, 2)) == run.checkpoint(OLD)
    shutil.rmtree(run.checkpoint(OLD))
    with pytest.raises(IntegrityError, match="rejected earlier"):
        refuse_unresumable(run)


def test_a_large_one_is_left_to_the_ranks_to_hash(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(run, NEWEST, OLD)
    monkeypatch.setattr(resumable, "MAX_HASHED_BYTES", 1000)
    refuse_unresumable(run)
    for step in (NEWEST, OLD):
        (run.checkpoint(step) / "__0_0.bin").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        refuse_unresumable(run)


def test_what_a_command_of_ones_own_saves_is_its_own(run: RunDir) -> None:
    damage(run, NEWEST, OLD)
    atomic_write_json(run.run_json, {"v": 1, "kind": "command"})
    refuse_unresumable(run)


def test_a_folder_that_cannot_be_listed_is_told(run: RunDir) -> None:
    shutil.rmtree(run.checkpoints)
    run.checkpoints.write_bytes(b"")
    with pytest.raises(IntegrityError) as e:
        refuse_unresumable(run)
    assert e.value.code == "E-RESUME-003"
