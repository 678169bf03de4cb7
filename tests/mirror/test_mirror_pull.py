"""`pull`: checkpoints arrive verified, a cut one is gone on with, and what is damaged is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter

import pytest

from orchestrator.runs.pull import chosen_steps, pull
from tests.mirror.conftest import Far, same
from workloads.contract.errors import IntegrityError, LocalError, UnreachableError, UsageError


def checkpoint(made, step: int, sizes: dict[str, int]) -> None:
    folder = made.run.checkpoint(step)
    folder.mkdir()
    files = []
    for name, size in sizes.items():
        data = os.urandom(size)
        (folder / name).write_bytes(data)
        files.append({"name": name, "size": size, "sha256": hashlib.sha256(data).hexdigest()})
    made.run.manifest(folder).write_text(json.dumps({"v": 1, "step": step, "files": files}))


def filled(far: Far):
    made = far.make()
    made.status("halted", "dinner")
    made.log(0, b"line\n" * 10_000)
    (made.run.stackdumps / "stackdump_rank0_x.txt").write_text("Thread 1\n")
    checkpoint(made, 1, {"model_rank0.pt": 1000, "optim_rank0.pt": 9 << 20, "empty": 0})
    checkpoint(made, 2, {"model_rank0.pt": 5 << 20})
    return made


def quiet(*_: object) -> None:
    return


def test_everything_is_here_then(far):
    made = filled(far)
    source = far.source(made.run)
    told = Counter()
    done = pull(source, checkpoints="all", logs=True, progress=lambda what, n, total: told.update({what: 1}))
    assert done.steps == (1, 2) and same(made.run, source.run) == []
    assert told["checkpoint step 1"] and told["records and logs"]
    again = pull(far.source(made.run), checkpoints="all", logs=True, progress=quiet)
    assert again.size_bytes == 0
    far.pod.close()
    assert not [p for p in source.run.path.rglob("*.part")]


@pytest.mark.parametrize(("which", "steps"), [("latest", [2]), ("all", [1, 2]), ("none", []), ("1", [1])])
def test_which_checkpoints(far, which, steps):
    made = filled(far)
    assert chosen_steps(made.run, which) == steps
    for wrong in ("3", "newest", "-1", "1.0", "../x"):
        with pytest.raises(UsageError):
            chosen_steps(made.run, wrong)


def test_without_logs(far):
    made = filled(far)
    source = far.source(made.run)
    pull(source, checkpoints="none", logs=False, progress=quiet)
    assert "logs/rank0.log" in same(made.run, source.run) and source.run.status.exists()
    assert (source.run.stackdumps / "stackdump_rank0_x.txt").exists()


def test_a_cut_pull_goes_on_where_it_was(far):
    made = filled(far)
    source, seen = far.source(made.run), []

    def cut(what: str, done: int, total: int | None) -> None:
        seen.append((what, done))
        if what == "checkpoint step 1" and done > 4 << 20:
            far.kill()

    with pytest.raises(UnreachableError):
        pull(source, checkpoints="1", logs=True, progress=cut)
    assert list(source.run.checkpoint(1).glob(".*.part")) and not (source.run.checkpoint(1) / "optim_rank0.pt").exists()
    sent: list[int] = []
    pull(far.source(made.run), checkpoints="1", logs=True, progress=lambda w, n, t: sent.append(n))
    assert (source.run.checkpoint(1) / "optim_rank0.pt").read_bytes() == (
        made.run.checkpoint(1) / "optim_rank0.pt"
    ).read_bytes()


def test_a_flipped_bit_is_named(far):
    made = filled(far)
    path = made.run.checkpoint(2) / "model_rank0.pt"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    source = far.source(made.run)
    with pytest.raises(IntegrityError) as caught:
        pull(source, checkpoints="latest", logs=True, progress=quiet)
    assert caught.value.exit_code == 8 and "model_rank0.pt" in str(caught.value.where)
    assert not (source.run.checkpoint(2) / "model_rank0.pt").exists()


def test_a_disk_that_is_too_small_is_told_before(far):
    made = filled(far)
    manifest = made.run.manifest(made.run.checkpoint(2))
    row = json.loads(manifest.read_text())
    row["files"][0]["size"] = 1 << 49
    manifest.write_text(json.dumps(row))
    with pytest.raises(LocalError) as caught:
        pull(far.source(made.run), checkpoints="latest", logs=True, progress=quiet)
    assert caught.value.code == "E-PULL-004"
