"""Damage of every kind: nothing damaged is ever taken, every rejected one is named, and the older good one is used."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.killer import NEW, NEWEST, OLD, flip, with_torch
from tests.checkpoints.saver import FileState, checkpointer, content, make_run, save, verified
from workloads.contract.errors import IntegrityError
from workloads.contract.files import dump_json
from workloads.contract.manifest import MAX_FILES, MAX_MANIFEST_BYTES, newest_verified, sealed, verify
from workloads.contract.rundir import RunDir
from workloads.contract.trouble import Word, read_troubles
from workloads.runtime.quarantine import KEPT
from workloads.train.resume import choose

SMALL = 600  # bytes of state: a flip in manifest.json is as likely as one in the data


def saved_run(root: Path, *steps: int, size: int = SMALL) -> RunDir:
    run = make_run(root)
    saver = checkpointer(run, keep=max(2, len(steps)), state=FileState(size))
    for step in steps:
        assert save(saver, step)
    return run


@contextmanager
def restored(path: Path) -> Iterator[None]:
    data = path.read_bytes()
    yield
    path.write_bytes(data)


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.iterdir())


def flips(run: RunDir) -> list[tuple[Path, int]]:
    return [(path, bit) for path in files_of(run.checkpoint(NEW)) for bit in range(path.stat().st_size * 8)]


def accepted(run: RunDir, chosen: list[tuple[Path, int]]) -> list[tuple[str, int]]:
    """Those of the flips after which the checkpoint still passes."""
    found = []
    for path, bit in chosen:
        with restored(path):
            flip(path, bit)
            if not verify(run.checkpoint(NEW), run_id=run.run_id):
                found.append((path.name, bit))
    assert verify(run.checkpoint(NEW), run_id=run.run_id) == []
    return found


def test_no_flipped_bit_is_accepted(tmp_path: Path) -> None:
    run = saved_run(tmp_path, NEW)
    everything = flips(run)
    assert len({path for path, _ in everything}) == 4 and len(everything) > 8000
    assert accepted(run, random.Random(6).sample(everything, 1000)) == []


@pytest.mark.long
def test_not_one_bit_of_a_whole_checkpoint_can_flip(tmp_path: Path) -> None:
    run = saved_run(tmp_path, NEW)
    everything = flips(run)
    assert accepted(run, everything) == []
    print(f"{len(everything)} flips, 0 accepted")


def test_no_damage_to_shards_of_torch_is_accepted(tmp_path: Path) -> None:
    """1,000 flips, truncations and runs of zeros over shard, metadata, generators and manifest of a real checkpoint."""
    run, rng = make_run(tmp_path), random.Random(8)
    assert save(with_torch(run, 1), NEW)
    found = files_of(run.checkpoint(NEW))
    assert {p.name for p in found} >= {".metadata", "__0_0.distcp", "rng_rank0.json", "trainer.json", "manifest.json"}
    heavy = [p for p in found if p.suffix == ".distcp"] * 6 + found  # most of them in what is loaded as weights
    for n in range(1000):
        path = rng.choice(heavy)
        size = path.stat().st_size
        with restored(path):
            match n % 4:
                case 0:
                    os.truncate(path, rng.randrange(size))
                case 1:
                    data, at = bytearray(path.read_bytes()), rng.randrange(size)
                    hole = bytes(min(512, size - at))
                    if data[at : at + len(hole)] == hole:
                        continue  # zeros were there already
                    data[at : at + len(hole)] = hole
                    path.write_bytes(data)
                case _:
                    flip(path, rng.randrange(size * 8))
            assert verify(run.checkpoint(NEW), run_id=run.run_id), (n, path.name)
    assert verify(run.checkpoint(NEW), run_id=run.run_id) == []


def test_no_truncation_and_no_growth_is_accepted(tmp_path: Path) -> None:
    run, rng = saved_run(tmp_path, NEW), random.Random(7)
    for path in files_of(run.checkpoint(NEW)):
        size = path.stat().st_size
        for length in [0, 1, size - 1, size + 1, 1 << 30, *(rng.randrange(size) for _ in range(10))]:
            with restored(path):
                os.truncate(path, length)
                assert verify(run.checkpoint(NEW)), (path.name, length)
        with restored(path):
            path.write_bytes(bytes(size))  # a hole where data was: the size is right
            assert verify(run.checkpoint(NEW)), path.name


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[RunDir], None]:
    """The newest manifest changed by somebody who knows how to seal it."""

    def damage(run: RunDir) -> None:
        path = run.manifest(run.checkpoint(NEW))
        row = json.loads(path.read_text())
        change(row)
        path.write_bytes(dump_json(sealed(row)))

    return damage


def listed(name: str) -> Callable[[RunDir], None]:
    """A file of that name in the manifest, with the hash of a file that is there."""
    return edited(lambda m: m["files"].append({**m["files"][0], "name": name}))


def raw(data: bytes) -> Callable[[RunDir], None]:
    return lambda run: run.manifest(run.checkpoint(NEW)).write_bytes(data) and None


def swap(a: Callable[[RunDir], Path], b: Callable[[RunDir], Path]) -> Callable[[RunDir], None]:
    def damage(run: RunDir) -> None:
        one, two, aside = a(run), b(run), run.path / "aside"
        one.rename(aside)
        two.rename(one)
        aside.rename(two)

    return damage


def of(step: int, name: str = "") -> Callable[[RunDir], Path]:
    return lambda run: run.checkpoint(step) / name if name else run.checkpoint(step)


def replaced(name: str, make: Callable[[Path, Path], object]) -> Callable[[RunDir], None]:
    """`make(path, aside)` instead of the file, which lies at `aside`, whole."""

    def damage(run: RunDir) -> None:
        path, aside = run.checkpoint(NEW) / name, run.path / "aside"
        path.rename(aside)
        make(path, aside)

    return damage


SHARD = "__0_0.bin"
DAMAGES: dict[str, tuple[Callable[[RunDir], object], str]] = {
    "a missing shard": (lambda r: (r.checkpoint(NEW) / SHARD).unlink(), "is missing"),
    "no manifest": (lambda r: r.manifest(r.checkpoint(NEW)).unlink(), "never finished"),
    "an empty directory": (lambda r: [p.unlink() for p in files_of(r.checkpoint(NEW))], "never finished"),
    "a file more": (lambda r: (r.checkpoint(NEW) / "__9_0.bin").write_bytes(b"x"), "not in the manifest"),
    "a folder more": (lambda r: (r.checkpoint(NEW) / "more").mkdir(), "not in the manifest"),
    "a temporary file": (lambda r: (r.checkpoint(NEW) / "trainer.json.tmp.7").write_bytes(b""), "not in the manifest"),
    "two shards swapped": (swap(of(NEW, SHARD), of(NEW, "__0_1.bin")), "sha256"),
    "a shard of another step": (swap(of(NEW, SHARD), of(OLD, SHARD)), "sha256"),
    "a manifest of another step": (swap(of(NEW, "manifest.json"), of(OLD, "manifest.json")), f"of step {OLD}"),
    "two checkpoints swapped": (swap(of(NEW), of(OLD)), f"of step {OLD}"),
    "a manifest of another run": (edited(lambda m: m.update(run="x-20260101T000000Z-0000")), "of run x-"),
    "a file instead of a checkpoint": (
        lambda r: (shutil.rmtree(r.checkpoint(NEW)), r.checkpoint(NEW).write_bytes(b"x")), "not a directory",
    ),
    "a link to a whole checkpoint": (
        lambda r: (r.checkpoint(NEW).rename(r.path / "away"), r.checkpoint(NEW).symlink_to(r.path / "away")),
        "not a directory",
    ),
    "a link to a whole shard": (replaced(SHARD, lambda p, aside: p.symlink_to(aside)), "not a regular file"),
    "a link as manifest": (replaced("manifest.json", lambda p, aside: p.symlink_to(aside)), "a link"),
    "a FIFO": (replaced(SHARD, lambda p, aside: os.mkfifo(p)), "not a regular file"),
    "a folder as shard": (replaced(SHARD, lambda p, aside: p.mkdir()), "not a regular file"),
    "a name that climbs": (listed("../aside"), "bad file name"),
    "an absolute name": (listed("/etc/passwd"), "bad file name"),
    "the manifest in itself": (listed("manifest.json"), "bad file name"),
    "a name with an escape": (listed("\x1b[2J"), "bad file name"),
    "a name with a newline": (listed("a\nb"), "bad file name"),
    "a name twice": (listed(SHARD), "listed twice"),
    "a file that is not there": (listed("x"), "x is missing"),
    "a name of 300 characters": (listed("x" * 300), "bad file name"),
    "a run id with an escape": (edited(lambda m: m.update(run="\x1b[2J")), r"of run \x1b[2J"),
    "no files": (edited(lambda m: m.update(files=[])), "`files`"),
    "files as object": (edited(lambda m: m.update(files={"a": 1})), "`files`"),
    "too many files": (edited(lambda m: m.update(files=[None] * (MAX_FILES + 1))), "`files`"),
    "a size below 0": (edited(lambda m: m["files"][0].update(size=-1)), "no good size"),
    "a size as text": (edited(lambda m: m["files"][0].update(size="300")), "no good size"),
    "a huge size": (edited(lambda m: m["files"][0].update(size=10**400)), "bytes"),
    "a hash too short": (edited(lambda m: m["files"][0].update(sha256="ab")), "no good size and sha256"),
    "a step as text": (edited(lambda m: m.update(step="30")), "not a whole number"),
    "a version of tomorrow": (edited(lambda m: m.update(v=3)), "version"),
    "a version of text": (edited(lambda m: m.update(v="2")), "version"),
    "a sealed one as an unsealed one": (edited(lambda m: m.update(v=1)), "seal"),
    "a huge manifest": (raw(b" " * MAX_MANIFEST_BYTES + b"{}"), "larger than"),
    "a deep manifest": (raw(b"[" * 200_000), "nested too deeply"),
    "a manifest of zeros": (raw(bytes(500)), "manifest"),
    "a manifest that is a list": (raw(b"[]\n"), "JSON object"),
    "an empty manifest": (raw(b""), "manifest"),
    "a number of 5000 digits": (raw(b'{"v":' + b"9" * 5000 + b"}"), "manifest"),
    "spaces in a manifest": (
        lambda r: (p := r.manifest(r.checkpoint(NEW))).write_bytes(p.read_bytes().replace(b",", b", ", 1)),
        "not as they were written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_resume_names_the_damaged_one_puts_it_away_and_takes_the_older(tmp_path: Path, name: str) -> None:
    damage, reason = DAMAGES[name]
    run = saved_run(tmp_path, OLD, NEWEST, NEW)
    damage(run)
    before = len(os.listdir(run.checkpoints))
    run.epoch.write_text("2\n")
    state = FileState(SMALL)
    saver = checkpointer(run, 2, state=state)
    path = choose(saver)
    assert path == run.checkpoint(NEWEST)
    saver.load(path)
    assert state.read_bytes == content(NEWEST, SMALL)
    told, _ = read_troubles(run)
    assert [(t.what, t.checkpoint, t.attempt) for t in told] == [(Word.REJECTED, f"step_{NEW:08d}", 2)]
    assert reason in told[0].why and told[0].kept_as is not None
    assert all(c.isprintable() for c in told[0].why)
    assert os.path.lexists(run.checkpoints / told[0].kept_as)  # put away, not removed
    assert len(os.listdir(run.checkpoints)) == before + 1  # trouble.jsonl
    # the next attempt has nothing to say
    run.epoch.write_text("3\n")
    assert choose(checkpointer(run, 3)) == path and read_troubles(run)[0] == told


def test_every_rejected_one_is_named_and_a_bounded_number_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = range(10, 100, 10)
    run = saved_run(tmp_path, *steps)
    for step in list(steps)[1:]:
        flip(run.checkpoint(step) / SHARD, 5)
    assert choose(checkpointer(run, 2)) == run.checkpoint(10)
    told, _ = read_troubles(run)
    assert {t.checkpoint for t in told if t.what is Word.REJECTED} == {f"step_{s:08d}" for s in list(steps)[1:]}
    dropped = [t for t in told if t.what is Word.DROPPED]
    assert len(dropped) == 8 - KEPT and len(list(run.checkpoints.glob("rejected_*"))) == KEPT
    assert capsys.readouterr().out.count("is not used: __0_0.bin does not match its sha256") == 8
    assert verified(run) == [10]


def test_when_nothing_verifies_the_run_is_refused_and_nothing_is_moved(tmp_path: Path) -> None:
    run = saved_run(tmp_path, OLD, NEWEST)
    for step in (OLD, NEWEST):
        flip(run.checkpoint(step) / SHARD)
    for attempt in (2, 3):
        with pytest.raises(IntegrityError) as e:
            choose(checkpointer(run, attempt))
        assert e.value.code == "E-TRAIN-005"
        assert sorted(p.name for p in run.checkpoints.glob("*_*")) == [f"step_{s:08d}" for s in (OLD, NEWEST)]
    told, _ = read_troubles(run)
    assert [(t.checkpoint, t.kept_as) for t in told[:2]] == [(f"step_{NEWEST:08d}", None), (f"step_{OLD:08d}", None)]


def test_a_run_whose_only_checkpoints_were_rejected_does_not_start_over(tmp_path: Path) -> None:
    run = saved_run(tmp_path, OLD, NEWEST)
    flip(run.checkpoint(NEWEST) / SHARD)
    assert choose(checkpointer(run, 2)) == run.checkpoint(OLD)
    shutil.rmtree(run.checkpoint(OLD))
    with pytest.raises(IntegrityError, match="rejected earlier"):
        choose(checkpointer(run, 3))


def test_a_run_that_never_had_one_starts_at_step_0(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert choose(checkpointer(run, 2)) is None
    shutil.rmtree(run.checkpoints)
    assert choose(checkpointer(run, 2)) is None


def test_a_folder_that_cannot_be_listed_is_not_a_run_without_checkpoints(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.checkpoints.rmdir()
    run.checkpoints.write_bytes(b"")
    with pytest.raises(IntegrityError) as e:
        choose(checkpointer(run, 2))
    assert e.value.code == "E-TRAIN-009"


def test_names_that_are_nearly_right_are_told_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(tmp_path, OLD, NEWEST)
    copies = ["step_00000030.bak", "step_000000030", "step_30", "step_٠٠٠٠٠٠٣٠"]
    for name in copies:
        shutil.copytree(run.checkpoint(NEWEST), run.checkpoints / name)
    assert choose(checkpointer(run, 2)) == run.checkpoint(NEWEST)
    assert capsys.readouterr().out.count("is not the name of a checkpoint") == len(copies)
    assert all((run.checkpoints / name).is_dir() for name in copies)


def test_a_checkpoint_that_changed_after_it_was_saved_does_not_count_as_kept(tmp_path: Path) -> None:
    """keep = 2: the second newest was altered after its save, so the third newest must stay."""
    run = make_run(tmp_path)
    saver = checkpointer(run, keep=2)
    assert save(saver, OLD) and save(saver, NEWEST)
    flip(run.checkpoint(NEWEST) / SHARD)
    assert save(saver, NEW)
    assert verified(run) == [NEW, OLD]
    told, _ = read_troubles(run)
    assert [t.checkpoint for t in told] == [f"step_{NEWEST:08d}"] and "sha256" in told[0].why
    assert save(saver, NEW + 10) and verified(run) == [NEW + 10, NEW]
    assert newest_verified(run)[1] == []


def test_kept_for_good(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    saver = checkpointer(run, keep=2)
    saver._retention.keep_every = 40
    for step in range(10, 110, 10):
        assert save(saver, step)
    assert verified(run) == [100, 90, 80, 40]
