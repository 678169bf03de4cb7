"""A run that begins with another run's checkpoint: `orch launch --resume`, as run.json tells it.

Nothing of that checkpoint is loaded before every byte of it verified; it is never changed or removed. Its files are
linked into this run's directory, for the other run may go on and remove it. Once the run has a checkpoint of its own it
goes on from that, and the links go. Called by the trainer's resume.
"""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.errors import IntegrityError
from workloads.contract.files import fsync_dir, try_read_json
from workloads.contract.manifest import committed, verify
from workloads.contract.rundir import RunDir
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class Start:
    """`allow`: names as in `workloads.contract.allowed`."""

    checkpoint: Path
    allow: frozenset[str]


def start_of(env: RankEnv) -> Start | None:
    """None for a run that begins at step 0."""
    told = (try_read_json(env.run.run_json) or {}).get("start")
    if not isinstance(told, dict) or not isinstance(told.get("checkpoint"), str):
        return None
    allow = told.get("allow")
    names = frozenset(str(name) for name in allow) if isinstance(allow, list) else frozenset()
    return Start(Path(told["checkpoint"]), names)


def verified(checkpointer: Checkpointer, start: Start) -> Path:
    """The checkpoint, looked at by rank 0 for all. IntegrityError on every rank when it must not be used.

    It is this run's own from then on: the other run may go on and remove what is too old for it.
    """
    env = checkpointer.env
    kept, problems, is_there = checkpointer.agreement.from_rank0(_taken(env, start) if env.rank == 0 else None)
    if not is_there:
        raise gone(start)
    if problems:
        raise IntegrityError(
            "E-TRAIN-010", f"the run begins with a checkpoint that must not be used: {problems[0]}",
            where=str(start.checkpoint), expected="one that verifies",
            fix="mend it from a copy, or launch a new run from another one",
        )  # fmt: skip
    return _kept(env, start) if kept else start.checkpoint


def let_go(env: RankEnv) -> None:
    """Rank 0, once the run has a checkpoint of its own: give back the room."""
    for folder in (env.run.start, env.run.staged_start):
        shutil.rmtree(folder, ignore_errors=True)


def gone(start: Start) -> IntegrityError:
    """Why the run cannot begin, and what lies there instead."""
    other = RunDir(start.checkpoint.parent.parent)
    try:
        there = [path.name for path in committed(other)]
    except OSError:
        there = []
    why = f": {other.run_id} went on and keeps its newest" if there else ""
    return IntegrityError(
        "E-TRAIN-010", f"the checkpoint that the run begins with is not there any more{why}",
        where=str(start.checkpoint), value=f"there now: {', '.join(there) or 'none'}",
        expected=start.checkpoint.name,
        fix=f"launch a new run from the newest: orch launch JOB --resume {shlex.quote(str(other.path))}"
        if there else "bring it back, or launch a new run from another one",
    )  # fmt: skip


def _kept(env: RankEnv, start: Start) -> Path:
    return env.run.start / start.checkpoint.name


def _taken(env: RankEnv, start: Start) -> tuple[bool, list[str], bool]:
    """Rank 0: (it is kept in this run's directory, why it must not be used, whether it is there at all)."""
    if not verify(_kept(env, start)):
        return True, [], True
    try:
        problems = _keep(env, start)
    except OSError:  # another disk, or one without links: it is read where it lies
        return False, verify(start.checkpoint), start.checkpoint.is_dir()
    finally:
        shutil.rmtree(env.run.staged_start, ignore_errors=True)
    return not problems, problems, True


def _keep(env: RankEnv, start: Start) -> list[str]:
    """Why it is not kept: what was verified are the links, which nobody removes meanwhile. OSError."""
    staged = env.run.staged_start
    shutil.rmtree(staged, ignore_errors=True)
    _link(start.checkpoint, staged / start.checkpoint.name)
    problems = verify(staged / start.checkpoint.name)
    if not problems:
        shutil.rmtree(env.run.start, ignore_errors=True)
        staged.rename(env.run.start)
        fsync_dir(env.run.path)
    return problems


def _link(source: Path, target: Path) -> None:
    """The same files under another name, which takes no room: orch never writes into a checkpoint. OSError."""
    target.mkdir(parents=True, mode=0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            os.link(entry.path, target / entry.name, follow_symlinks=False)
    fsync_dir(target)
