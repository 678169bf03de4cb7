"""Can a run of kind `train` go on? Looked at where it lies, before anybody is asked to resume it.

Hashes the newest checkpoints as far as that takes a second or two, and looks at names and sizes beyond; ranks verify
every byte all the same. Nothing is changed here. Called by `pods.remote.control`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.contract.errors import IntegrityError, SpecError, escape
from workloads.contract.files import try_read_json
from workloads.contract.manifest import committed, look, verify
from workloads.contract.rundir import REJECTED_PREFIX, TRAINER_FILE, RunDir

MAX_HASHED_BYTES = 512 << 20
SHOWN = 5


def refuse_unresumable(run: RunDir) -> None:
    """IntegrityError when the run has checkpoints and none of them can be used. One that never had any is fine."""
    if (try_read_json(run.run_json) or {}).get("kind", "train") != "train":
        return  # what a command of one's own saves is its own affair
    try:
        rejected = _rejected(run)
    except OSError as e:
        raise _unreadable(run, e) from e
    if not rejected:
        return
    told = "; ".join(f"{name}: {escape(why, 100)}" for name, why in rejected[:SHOWN])
    more = f"; and {len(rejected) - SHOWN} more" if len(rejected) > SHOWN else ""
    raise IntegrityError(
        "E-RESUME-002", f"none of {len(rejected)} checkpoints of run {run.run_id} verifies: {told}{more}",
        where=str(run.checkpoints), expected="one that verifies",
        fix=f"mend one from a copy, or mv {shlex.quote(str(run.checkpoints))} elsewhere to start at step 0",
    )  # fmt: skip


def _unreadable(run: RunDir, e: OSError) -> IntegrityError:
    return IntegrityError(
        "E-RESUME-003", f"the checkpoints of run {run.run_id} cannot be looked at: {e.strerror}",
        where=str(run.checkpoints), fix=f"ls -l {shlex.quote(str(run.checkpoints))}   (mend what it says)",
    )  # fmt: skip


def newer_than(run: RunDir, name: str) -> tuple[str, ...]:
    """Names of the checkpoints that are newer than `name`, newest first: what a resume from it sets aside.

    SpecError when the run has none of that name.
    """
    try:
        found = committed(run)
    except OSError as e:
        raise _unreadable(run, e) from e
    names = [p.name for p in found]
    if name not in names:
        raise SpecError(
            "E-RESUME-004", f"run {run.run_id} has no checkpoint {escape(name, 40)}", where="--checkpoint", value=name,
            expected=", ".join(names[:SHOWN]) or "a run that has checkpoints",
            fix=f"orch resume {run.run_id}   (from the newest one)",
        )  # fmt: skip
    return tuple(names[: names.index(name)])


def refuse_named(run: RunDir, name: str) -> None:
    """SpecError when the run has no checkpoint of that name, IntegrityError when it does not verify."""
    newer_than(run, name)
    path = run.checkpoints / name
    manifest, problems = look(path, run_id=run.run_id)
    if manifest is not None and sum(f.size for f in manifest.files) <= MAX_HASHED_BYTES:
        problems = verify(path, run_id=run.run_id)
    if problems:
        raise IntegrityError(
            "E-RESUME-005", f"{name} must not be used: {escape('; '.join(problems), 200)}", where=str(path),
            expected="a checkpoint that verifies", fix=f"orch resume {run.run_id}   (from the newest one that does)",
        )  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What a checkpoint says of the job that wrote it."""

    name: str
    step: int
    config: dict[str, Any]


def config_of(run: RunDir, named: str | None) -> Written | None:
    """Of `named`, else of the newest checkpoint that looks whole, else of the one that the run began with.

    A look before anybody is asked: nothing is hashed, and ranks compare again what they verified.
    """
    try:
        candidates = [run.checkpoints / named] if named else committed(run)
    except OSError:
        return None
    start = (try_read_json(run.run_json) or {}).get("start")
    if isinstance(start, dict) and isinstance(start.get("checkpoint"), str):
        began = Path(start["checkpoint"])
        candidates += [run.start / began.name, began]
    for path in candidates:
        row = try_read_json(path / TRAINER_FILE) or {}
        config, step = row.get("config"), row.get("step")
        if isinstance(config, dict) and type(step) is int and not look(path)[1]:
            return Written(path.name, step, config)
    return None


def _rejected(run: RunDir) -> list[tuple[str, str]]:
    """(name, why) of every checkpoint, newest first; [] as soon as one can be used, or when there are none."""
    rejected: list[tuple[str, str]] = []
    left = MAX_HASHED_BYTES
    for path in committed(run):
        manifest, problems = look(path, run_id=run.run_id)
        if manifest is not None:
            left -= sum(f.size for f in manifest.files)
            problems = verify(path, run_id=run.run_id) if left >= 0 else []
        if not problems:
            return []
        rejected.append((path.name, "; ".join(problems)))
    if rejected or not run.checkpoints.is_dir():
        return rejected
    earlier = sorted((p.name for p in run.checkpoints.iterdir() if p.name.startswith(REJECTED_PREFIX)), reverse=True)
    return [(escape(name), "rejected earlier") for name in earlier]
