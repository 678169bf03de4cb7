"""`python -m tests.checkpoints.killer SCENE FOLDER`: a scene played once for each of its steps, killed before it.

Forks a child for each step (so that imports are paid once), kills it there with SIGKILL, then does in another child
what the next attempt does and tells what it found: a JSON line {n, at, newest, verified, ...} a step; the last one,
which nothing killed, has `at` null.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoints.saver import FileState, begin, checkpointer, content, leftovers, make_run, save, verified
from tests.checkpoints.steps import killed_at
from workloads.contract.rundir import RunDir
from workloads.contract.trouble import Word, read_troubles
from workloads.runtime.checkpoint import Checkpointer
from workloads.train.resume import choose

MAX_STEPS = 400
OLD, NEWEST, NEW = 10, 20, 30
Saver = Callable[[RunDir, int], Checkpointer]


def plain(run: RunDir, attempt: int) -> Checkpointer:
    return checkpointer(run, attempt)


def with_torch(run: RunDir, attempt: int) -> Checkpointer:
    """The same with a real model: what torch does to the disk is killed as well."""
    import torch

    from workloads.runtime.agreement import Agreement
    from workloads.runtime.state import TorchState

    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = torch.nn.Linear(32, 32)
    return checkpointer(run, attempt, state=TorchState(0, Agreement(), model, torch.optim.AdamW(model.parameters())))


@dataclass(frozen=True)
class Scene:
    prepare: Callable[[RunDir, Saver], None]
    play: Callable[[RunDir, Saver], object]
    saver: Saver = plain


def _two_saved(run: RunDir, make: Saver) -> None:
    saver = make(run, 1)
    assert save(saver, OLD) and save(saver, NEWEST)


def _third(run: RunDir, make: Saver) -> None:
    """The third save of an attempt: with the removal of the first one, and the rows synced."""
    saver = make(run, 1)
    with contextlib.redirect_stdout(sys.stderr):
        choose(saver)
    with run.ledger.open("ab") as rows:
        save(saver, NEW, lambda: os.fsync(rows.fileno()))


def _third_in_background(run: RunDir, make: Saver) -> None:
    """As `_third`, by the thread that writes while training goes on."""
    saver = make(run, 1)
    with contextlib.redirect_stdout(sys.stderr):
        choose(saver)
    with run.ledger.open("ab") as rows:
        begin(saver, NEW, lambda: os.fsync(rows.fileno()))
        assert saver.collect() is not None


def _damaged_newest(run: RunDir, make: Saver) -> None:
    """Three, the newest with a flipped bit, and what a killed save left."""
    saver = make(run, 1)
    saver._retention.keep = 3
    for step in (OLD, NEWEST, NEW):
        assert save(saver, step)
    flip(next(run.checkpoint(NEW).glob("__0_*")))
    shutil.copytree(run.checkpoint(NEWEST), run.staged_checkpoint(NEWEST + 5, 1))


def _resumed(run: RunDir, make: Saver) -> None:
    """A resume that goes round the damaged one, then makes the same step again."""
    run.epoch.write_text("2\n")
    saver = make(run, 2)
    path = choose(saver)
    assert path is not None
    saver.load(path)
    save(saver, NEW)


SCENES = {
    "save": Scene(_two_saved, _third),
    "background": Scene(_two_saved, _third_in_background),
    "resume": Scene(_damaged_newest, _resumed),
    "torch": Scene(_two_saved, _third, with_torch),
}


def flip(path: Path, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[(bit // 8) % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def in_child(work: Callable[[int], object]) -> tuple[int, bytes]:
    """(wait status, what it wrote to its pipe) of a child that does `work`."""
    get, put = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(get)
            work(put)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(put)
    with os.fdopen(get, "rb") as f:
        told = f.read()
    return os.waitpid(pid, 0)[1], told


def next_attempt(run: RunDir, make: Saver) -> dict[str, Any]:
    """What attempt 3 finds, and what lies there then."""
    run.epoch.write_text("3\n")
    before = verified(run)
    with contextlib.redirect_stdout(sys.stderr):
        saver = make(run, 3)
        path = choose(saver)
    assert path is not None
    saver.load(path)
    step, state = int(path.name.removeprefix("step_")), saver._state
    rejected = [t for t in read_troubles(run)[0] if t.what is Word.REJECTED]
    return {
        "newest": step, "before": before, "verified": verified(run), "left": leftovers(run),
        "whole": not isinstance(state, FileState) or state.read_bytes == content(step, state.size),
        "rejected": sorted({t.checkpoint for t in rejected}),
        "kept": [p.name for p in saver.quarantine.rejected()],
    }  # fmt: skip


def played(scene: Scene, run: RunDir, n: int) -> tuple[str | None, dict[str, Any]]:
    """The step before which the scene was killed (None: it came to its end), and what the next attempt found."""

    def play(put: int) -> None:
        os.dup2(2, 1)
        killed_at(n, run.path, put)
        scene.play(run, scene.saver)

    status, at = in_child(play)
    if status and not os.WIFSIGNALED(status):
        raise SystemExit(f"the scene failed at step {n}: status {status}")
    after, found = in_child(lambda put: os.write(put, json.dumps(next_attempt(run, scene.saver)).encode()))
    if after:
        raise SystemExit(f"no resume after a kill before step {n} ({at.decode()}): status {after}")
    return at.decode() if status else None, json.loads(found)


def main(scene_name: str, folder: Path) -> None:
    scene = SCENES[scene_name]
    base = make_run(folder / "base")
    scene.prepare(base, scene.saver)
    for n in range(MAX_STEPS):
        run = RunDir(folder / str(n) / base.run_id)
        shutil.copytree(base.path, run.path)
        at, found = played(scene, run, n)
        print(json.dumps({"n": n, "at": at, **found}), flush=True)
        shutil.rmtree(run.path.parent)
        if at is None:
            return
    raise SystemExit(f"more than {MAX_STEPS} steps")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
