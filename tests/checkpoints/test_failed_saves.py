"""Saves that fail: older checkpoints stay, nothing half-made is left, it is told once, and the next one succeeds."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.checkpoints.disks import Unavailable, ext4, fill, mounted, need, sh, shut_down, tmpfs
from tests.checkpoints.killer import NEW, NEWEST, OLD, flip
from tests.checkpoints.saver import FileState, checkpointer, leftovers, make_run, save, verified
from tests.train.harness import launch_ranks
from tests.train.harness import make_run as make_training
from workloads.contract.errors import IntegrityError
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir
from workloads.contract.trouble import Word, read_troubles
from workloads.runtime import checkpoint
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.rows import RowFile
from workloads.train.resume import choose

MIB = 1 << 20


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def on_tmpfs(disks: ExitStack, tmp_path: Path, size: str) -> RunDir:
    """A run whose checkpoints lie on a disk of their own."""
    run = make_run(tmp_path)
    try:
        disks.enter_context(tmpfs(run.checkpoints, size))
    except Unavailable as e:
        pytest.skip(str(e))
    return run


def words(run: RunDir) -> list[tuple[Word, str]]:
    return [(t.what, t.checkpoint) for t in read_troubles(run)[0]]


def fails(saver: Checkpointer, run: RunDir, capsys: pytest.CaptureFixture[str], *reasons: str) -> None:
    """The save of step NEW fails for one of `reasons`, and all is as it was before."""
    before = verified(run)
    assert save(saver, NEW) is None
    err = capsys.readouterr().err
    assert f"warning: checkpoint of step {NEW} was not saved: rank 0: " in err and any(r in err for r in reasons), err
    assert verified(run) == before and leftovers(run) == []


def test_a_folder_that_vanished_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    saver = checkpointer(run)
    assert save(saver, OLD)

    def vanish() -> None:
        run.checkpoints.rename(tmp_path / "away")

    assert save(saver, NEWEST, vanish) is None
    assert "was not saved" in capsys.readouterr().err
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    (tmp_path / "away").rename(run.checkpoints)
    assert verified(run) == [OLD]
    assert save(saver, NEW) and verified(run) == [NEW, OLD]
    assert leftovers(run) == []  # what was away with the folder went with the next save
    assert choose(checkpointer(run, 2)) == run.checkpoint(NEW)
    assert words(run) == [(Word.UNSAVED, f"step_{NEWEST:08d}"), (Word.SAVED_AGAIN, f"step_{NEW:08d}")]


def test_rows_that_cannot_be_synced_fail_the_save(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    saver = checkpointer(run)

    def refuse() -> None:
        raise OSError("3 lines are not written")

    assert save(saver, OLD, refuse) is None and verified(run) == [] and leftovers(run) == []
    assert save(saver, OLD) and verified(run) == [OLD]


def test_a_try_that_came_to_the_rename_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    saver = checkpointer(run)
    real: Callable[[Path], None] = checkpoint.fsync_dir

    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checkpoint, "fsync_dir", refuse)
    assert save(saver, OLD) is None and verified(run) == [OLD]
    inode = run.checkpoint(OLD).stat().st_ino
    monkeypatch.setattr(checkpoint, "fsync_dir", real)
    assert save(saver, OLD) and run.checkpoint(OLD).stat().st_ino == inode
    assert leftovers(run) == [] and saver.quarantine.rejected() == []


def test_a_name_that_is_taken_is_put_away_and_never_overwritten(tmp_path: Path) -> None:
    """Twice the same step in later attempts: both damaged ones are kept under names of their own."""
    run = make_run(tmp_path)
    assert save(checkpointer(run), OLD)
    for attempt in (2, 2, 3):
        flip(run.checkpoint(OLD) / "__0_1.bin")
        run.epoch.write_text(f"{attempt}\n")
        assert save(checkpointer(run, attempt), OLD) and verified(run) == [OLD]
    kept = sorted(p.name for p in run.checkpoints.glob("rejected_*"))
    assert kept == [f"rejected_step_{OLD:08d}_{x}" for x in ("a2", "a2_1", "a3")]


@pytest.mark.lab
def test_a_full_disk(tmp_path: Path, disks: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
    run = on_tmpfs(disks, tmp_path, "6m")
    saver = checkpointer(run, state=FileState(MIB))
    assert save(saver, OLD) and save(saver, NEWEST)
    fill(run.checkpoints / "filler")
    for _ in range(3):  # told before a byte is written
        fails(saver, run, capsys, "it needs 1.1 MiB, and 0.0 MiB are free")
    (run.checkpoints / "filler").unlink()
    assert save(saver, NEW) and verified(run) == [NEW, NEWEST]
    assert words(run) == [(Word.UNSAVED, f"step_{NEW:08d}"), (Word.SAVED_AGAIN, f"step_{NEW:08d}")]
    assert read_troubles(run)[0][1].why == "after 3 tries that failed"


class Understated(FileState):
    """Says that it needs nothing: the disk is full in the middle of a file."""

    def size_bytes(self) -> int:
        return 0


@pytest.mark.lab
def test_a_disk_that_fills_up_while_a_file_is_written(
    tmp_path: Path, disks: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_tmpfs(disks, tmp_path, "4m")
    assert save(checkpointer(run, state=FileState(MIB)), OLD)
    saver = checkpointer(run, state=Understated(4 * MIB))
    fails(saver, run, capsys, "No space left on device")
    assert os.statvfs(run.checkpoints).f_bavail * 4096 > 2 * MIB  # its room is free again


@pytest.mark.lab
def test_a_disk_that_is_read_only_for_a_while(
    tmp_path: Path, disks: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_tmpfs(disks, tmp_path, "6m")
    saver = checkpointer(run, state=FileState(MIB))
    assert save(saver, OLD) and save(saver, NEWEST)
    sh("mount", "-o", "remount,ro", str(run.checkpoints))
    fails(saver, run, capsys, "Read-only file system")
    sh("mount", "-o", "remount,rw", str(run.checkpoints))
    assert save(saver, NEW) and verified(run) == [NEW, NEWEST]


@pytest.mark.lab
def test_damaged_ones_make_room_for_a_new_one(tmp_path: Path, disks: ExitStack) -> None:
    run = on_tmpfs(disks, tmp_path, "6m")
    saver = checkpointer(run, keep=4, state=FileState(MIB))
    for step in (10, 20, 30, 40):
        assert save(saver, step)
    for step in (20, 30, 40):
        flip(run.checkpoint(step) / "__0_0.bin")
    run.epoch.write_text("2\n")
    saver = checkpointer(run, 2, state=FileState(MIB))
    path = choose(saver)
    assert path == run.checkpoint(10)
    saver.load(path)
    fill(run.checkpoints / "filler")
    assert save(saver, 15) and verified(run) == [15, 10]
    dropped = [t for t in read_troubles(run)[0] if t.what is Word.DROPPED]
    assert len(dropped) == 2 and all("its room was needed" in t.why for t in dropped)
    assert len(list(run.checkpoints.glob("rejected_*"))) == 1


@pytest.mark.lab
def test_a_disk_that_fails(tmp_path: Path, disks: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
    """EIO from everything in the middle of a save, as after an error of the journal; then the disk is mounted again."""
    run = make_run(tmp_path)
    image = tmp_path / "image"
    saver = checkpointer(run)
    try:
        with ext4(image, run.checkpoints):
            assert save(saver, OLD) and save(saver, NEWEST)
            for before_commit in (lambda: shut_down(run.checkpoints), lambda: None):
                assert save(saver, NEW, before_commit) is None
                assert "Input/output error" in capsys.readouterr().err
            with pytest.raises(IntegrityError) as e:
                choose(checkpointer(run, 2))
            assert e.value.code == "E-TRAIN-009" and "Input/output error" in e.value.what
    except Unavailable as e:
        pytest.skip(str(e))
    again = shutil.copy(image, tmp_path / "again")  # the dead file system may live on in somebody's mount namespace
    disks.enter_context(mounted(run.checkpoints, "-o", "loop", str(again)))
    assert choose(checkpointer(run, 2)) == run.checkpoint(NEWEST)
    assert verified(run) == [NEWEST, OLD] and leftovers(run) == []


@pytest.mark.lab
def test_rows_on_a_disk_that_fails_do_not_end_the_training(
    tmp_path: Path, disks: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        place = disks.enter_context(ext4(tmp_path / "image", tmp_path / "disk"))
        rows = RowFile(place / "training.csv", b"step,loss\n")
        rows.write(b"1,2.0\n")
        shut_down(place)
    except Unavailable as e:
        pytest.skip(str(e))
    for line in (b"2,1.9\n", b"3,1.8\n"):
        rows.write(line)
    assert capsys.readouterr().err.count("Input/output error; lines wait in memory") == 1
    with pytest.raises(OSError, match="2 lines are not written"):
        rows.sync()


@pytest.mark.lab
def test_a_torn_row_that_cannot_be_cut_is_cut_before_the_next(
    tmp_path: Path, disks: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that may only grow refuses to be cut; a limit of its size stands for the full disk."""
    path = tmp_path / "training.csv"
    rows = RowFile(path, b"step,loss\n")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        need("chattr")
        sh("chattr", "+a", str(path))
        disks.callback(sh, "chattr", "-a", str(path))
    except Unavailable as e:
        pytest.skip(str(e))
    for line in (b"1,2.0\n", b"2,1.9\n"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (13, old[1]))
        try:
            rows.write(line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert path.read_bytes() == b"step,loss\n1,2"
    assert capsys.readouterr().err.count("File too large; lines wait in memory") == 1
    disks.close()
    rows.write(b"3,1.8\n")
    rows.sync()
    assert path.read_bytes() == b"step,loss\n1,2.0\n2,1.9\n3,1.8\n"


TRAINING = {
    "train": {"steps": 100_000, "log_every": 100_000}, "checkpoint": {"every_s": None, "every_steps": 100_000},
}  # fmt: skip


def halted_on_full_disk(run: RunDir, *, now: bool, free_again: bool) -> None:
    """A real run whose checkpoints' disk is full when it is asked to halt."""
    fill(run.checkpoints / "filler")
    with launch_ranks(run, world=1) as ranks:
        ranks.until_step(3)
        run.halt.write_text(json.dumps({"now": now, "why": "test", "who": "test", "ts": time.time()}))
        ranks.until(lambda: ranks.log().count("was not saved") >= 2)
        assert not run.halt_ack(0).exists()
        if free_again:
            (run.checkpoints / "filler").unlink()
        assert ranks.wait() == [75], ranks.log()
    ack = read_json(run.halt_ack(0))
    assert ack.get("checkpoint") == (f"step_{ack['step']:08d}" if free_again else None)
    assert bool(verified(run)) == free_again and leftovers(run) == []


@pytest.mark.lab
@pytest.mark.long
@pytest.mark.parametrize(("now", "free_again"), [(False, True), (True, False)])
def test_a_halt_tries_to_save_until_its_clock_is_over(
    tmp_path: Path, disks: ExitStack, now: bool, free_again: bool
) -> None:
    run = make_training(tmp_path, TRAINING)
    try:
        disks.enter_context(tmpfs(run.checkpoints, "2m"))
    except Unavailable as e:
        pytest.skip(str(e))
    halted_on_full_disk(run, now=now, free_again=free_again)
