"""Damaged checkpoints, full disks, newer attempts, changed jobs: what a rank refuses, and what it survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.harness import ROOT, exactness, launch_ranks, ledger, make_run, train
from workloads.contract.beats import BeatReader
from workloads.contract.files import dump_json
from workloads.contract.manifest import newest_verified, parse_manifest, read_manifest, sealed, verify
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase

GOLDEN = ROOT / "tests" / "golden" / "errors"
ONE = {"train": {"steps": 10}, "checkpoint": {"every_s": None, "every_steps": 5}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("finished"), ONE)
    assert train(run, world=1) == [0]
    return run


@pytest.fixture
def copy(tmp_path: Path, finished: RunDir) -> RunDir:
    subprocess.run(["cp", "-a", str(finished.path), str(tmp_path)], check=True)
    return RunDir(tmp_path / finished.run_id)


def flip(run: RunDir) -> None:
    path = run.checkpoint(10) / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def edit_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[RunDir], None]:
    def damage(run: RunDir) -> None:
        path = run.manifest(run.checkpoint(10))
        row = json.loads(path.read_text())
        change(row)
        path.write_bytes(dump_json(sealed(row)))

    return damage


def as_link(run: RunDir) -> None:
    path = run.checkpoint(10) / "trainer.json"
    path.rename(run.path / "elsewhere.json")
    path.symlink_to(run.path / "elsewhere.json")


def add_entry(name: str) -> Callable[[RunDir], None]:
    def add(manifest: dict[str, Any]) -> None:
        manifest["files"].append({"name": name, "size": 1, "sha256": "0" * 64})

    return edit_manifest(add)


DAMAGES: dict[str, tuple[Callable[[RunDir], object], str]] = {
    "flip": (flip, "sha256"),
    "truncated": (lambda r: os.truncate(r.checkpoint(10) / "__0_0.distcp", 1000), "bytes"),
    "empty": (lambda r: os.truncate(r.checkpoint(10) / ".metadata", 0), "bytes"),
    "missing": (lambda r: (r.checkpoint(10) / "rng_rank0.json").unlink(), "missing"),
    "no manifest": (lambda r: r.manifest(r.checkpoint(10)).unlink(), "never finished"),
    "torn manifest": (lambda r: os.truncate(r.manifest(r.checkpoint(10)), 100), "manifest"),
    "extra file": (lambda r: (r.checkpoint(10) / "__9_0.distcp").write_bytes(b"x"), "not in the manifest"),
    "link": (as_link, "not a regular file"),
    "swapped": (lambda r: (r.checkpoint(10).rename(r.checkpoint(11))), "step 10"),
    "foreign run": (edit_manifest(lambda m: m.update(run="other-20260101T000000Z-0000")), "run other"),
    "path": (add_entry("../x"), "bad file name"),
    "extra entry": (add_entry("x"), "x is missing"),
    "future": (edit_manifest(lambda m: m.update(v=3)), "version"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_is_newest(copy: RunDir, name: str) -> None:
    damage, reason = DAMAGES[name]
    damage(copy)
    path, rejected = newest_verified(copy, run_id=copy.run_id)
    assert path == copy.checkpoint(5)
    assert len(rejected) == 1 and reason in rejected[0][1]


@pytest.mark.long
def test_a_resume_goes_round_a_damaged_checkpoint_and_keeps_it(copy: RunDir, finished: RunDir) -> None:
    flip(copy)
    assert train(copy, world=1, attempt=2) == [0]
    assert "step_00000010 is not used: __0_0.distcp does not match" in copy.rank_log(0).read_text()
    assert exactness(copy) == exactness(finished)
    assert verify(copy.checkpoint(10)) == []
    assert copy.rejected_checkpoint("step_00000010", 2).is_dir()
    assert len(copy.archived_csv(1).read_text().splitlines()) == 6  # header and steps 6 to 10


def refused(run: RunDir, golden: str) -> None:
    """A second attempt ends with 77; what it says, with every reason, is a golden file (ORCH_REGEN=1 writes it)."""
    before = run.rank_log(0).read_text()
    assert train(run, world=1, attempt=2) == [77]
    told = run.rank_log(0).read_text().removeprefix(before).replace(str(run.path), "<run>")
    path = GOLDEN / f"train_{golden}.txt"
    if os.environ.get("ORCH_REGEN"):
        path.write_text(told)
    assert told == path.read_text()


@pytest.mark.long
def test_all_checkpoints_damaged_is_refused_rather_than_started_over(copy: RunDir) -> None:
    (copy.checkpoint(5) / ".metadata").unlink()
    edit_manifest(lambda m: m.update(run="other-20260101T000000Z-0000"))(copy)
    refused(copy, "01_no_checkpoint_verifies")
    assert len(ledger(copy)) == 10


@pytest.mark.long  # tests/checkpoints/test_changes.py has refusals of a supervised run
def test_a_changed_job_is_refused_by_field_name(copy: RunDir) -> None:
    row = json.loads(copy.run_json.read_text())
    row["job"]["train"]["lr"] = 0.5
    row["job"]["model"]["dim"] = 64
    copy.run_json.write_text(json.dumps(row))
    refused(copy, "02_the_job_differs")


@pytest.mark.long
@pytest.mark.proof  # tests/checkpoints/test_ranks.py has another refusal of two ranks
def test_a_refusal_ends_every_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path, ONE)
    assert train(run) == [0, 0]
    row = json.loads(run.run_json.read_text())
    row["job"]["train"]["seed"] = 5
    run.run_json.write_text(json.dumps(row))
    assert train(run, attempt=2) == [77, 77]
    assert "Traceback" not in run.rank_log(0).read_text() + run.rank_log(1).read_text()


@pytest.mark.long
def test_a_changed_corpus_is_refused_and_one_that_is_gone_may_come_back(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"to be or not to be, that is the question. " * 100)
    run = make_run(tmp_path, {**ONE, "data": {"source": "text", "path": str(text)}})
    assert train(run, world=1) == [0]
    text.write_bytes(text.read_bytes() + b"!")
    refused(run, "03_the_corpus_differs")
    text.unlink()
    assert train(run, world=1, attempt=3) == [1]
    assert "error[E-DATA-001]: cannot read the corpus: the data are not there" in run.rank_log(0).read_text()


def test_a_bad_job_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.run_json.write_text('{"v":1,"job":{"name":"test","trian":{}}}')
    assert train(run, world=1) == [77]
    assert "E-TRAIN-002" in run.rank_log(0).read_text()


@pytest.mark.long
def test_a_batch_that_two_ranks_cannot_share_is_refused_by_both(tmp_path: Path) -> None:
    assert train(make_run(tmp_path, {"train": {"global_batch": 1}}), world=2) == [77, 77]


@pytest.mark.long
def test_a_newer_attempt_fences_the_older_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"train": {"steps": 100_000}, "checkpoint": {"every_s": None, "every_steps": None}})
    with launch_ranks(run) as ranks:
        ranks.until_step(3)
        run.epoch.write_text("2\n")
        run.halt.touch()
        assert ranks.wait() == [76, 76]
    assert list(run.checkpoints.iterdir()) == []
    assert not run.halt_ack(0).exists()


def test_outside_a_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workloads.train"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error[E-TRAIN-001]" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"needs a small tmpfs: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.long
@pytest.mark.lab
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(small_disk: Path) -> None:
    over = {"train": {"steps": 100_000, "log_every": 100_000}, "checkpoint": {"every_s": None, "every_steps": 20}}
    run = make_run(small_disk, over)
    filler = small_disk / "filler"
    with launch_ranks(run) as ranks:
        ranks.until(lambda: run.checkpoint(20).exists())
        with filler.open("wb", buffering=0) as f:
            while True:
                try:
                    f.write(b"x" * 4096)
                except OSError:
                    break
        ranks.until(lambda: "was not saved" in ranks.log(0))
        time.sleep(1.0)
        assert all(p.poll() is None for p in ranks.procs)
        assert newest_verified(run)[0] is not None
        filler.unlink()
        saved = ranks.log(0).count("checkpoint: ")
        ranks.until(lambda: ranks.log(0).count("checkpoint: ") > saved)
        run.halt.touch()
        assert ranks.wait() == [75, 75]
    reader = BeatReader(run.heartbeat(0), 0)
    assert reader.read()[-1].msg is Phase.HALTING and reader.bad <= 3  # torn lines are counted, never merged
    steps = [r["step"] for r in ledger(run)]
    assert steps == list(range(1, len(steps) + 1))
    path, rejected = newest_verified(run, run_id=run.run_id)
    assert path == run.checkpoint(len(steps)) and not rejected
    assert not list(run.checkpoints.glob(".tmp_*"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["v", "run", "step", "attempt", "epoch", "world_size", "config_hash", "code_hash", "files"])


@given(st.dictionaries(keys, json_values, max_size=9))
def test_any_object_gives_a_manifest_or_reasons(row: dict[str, object]) -> None:
    manifest, reasons = parse_manifest({"v": 1, **row})
    assert (manifest is None) == bool(reasons)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_manifest_or_reasons(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(data)
        manifest, reasons = read_manifest(Path(folder))
        assert (manifest is None) == bool(reasons)
