"""Which checkpoint a run goes on from: the newest that verifies. Rank 0 looks and decides; all ranks get the same.

What older attempts had staged is taken away first. A damaged checkpoint is named and never used; once an older one is
taken instead, it is put away, so that the run's line never jumps back to it. When checkpoints are there and none
verifies, or the one that a resume named does not, the run is refused and nothing is moved: that is a person's decision.
Standard library only, but for what the checkpointer brings. Called by the trainer's resume and by `Run.resume`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.errors import IntegrityError
from workloads.contract.manifest import UNREADABLE, newest_verified, strange
from workloads.contract.trouble import Word
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.fence import StaleEpochError, check_epoch
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.staging import take_away

LOOK_AGAIN_S = 1.0


@dataclass(frozen=True)
class _Found:
    """What rank 0 tells the others."""

    name: str | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    stale: int | None = None
    trouble: str | None = None
    named: str | None = None
    """why the checkpoint that the resume named cannot be used"""


def choose(checkpointer: Checkpointer) -> Path | None:
    """The checkpoint to start from, None for step 0.

    Raises on every rank: IntegrityError when all are damaged or none can be looked at; StaleEpochError.
    """
    env = checkpointer.env
    found = checkpointer.agreement.from_rank0(_look(checkpointer) if env.rank == 0 else None)
    where = str(env.run.checkpoints)
    if found.stale is not None:
        raise StaleEpochError(env.epoch, found.stale)
    if found.trouble is not None:
        raise IntegrityError(
            "E-TRAIN-009", f"the checkpoints cannot be looked at: {found.trouble}", where=where,
            fix=f"ls -l {where}   (mend what it says, then orch resume {env.run_id})",
        )  # fmt: skip
    if found.named is not None:
        raise IntegrityError(
            "E-TRAIN-025", f"{env.resume_from}, which the resume asked for, must not be used: {found.named}",
            where=where, expected="a checkpoint that verifies",
            fix=f"mend it from a copy, or name another: orch resume {env.run_id} --checkpoint STEP",
        )  # fmt: skip
    for bad, why in found.rejected:
        print(f"warning: checkpoint {bad} is not used: {why}", flush=True)
    if found.name is None and found.rejected:
        raise IntegrityError(
            "E-TRAIN-005",
            f"none of {len(found.rejected)} checkpoints verifies; the newest: {found.rejected[0][1]}",
            where=where,
            fix="mend them from a copy, or move them away to start at step 0",
        )
    return env.run.checkpoints / found.name if found.name else None


def _look(checkpointer: Checkpointer) -> _Found:
    """Rank 0: fence, take away, verify, put away."""
    env = checkpointer.env
    try:
        check_epoch(env)
        _clear_staged(env)
        for name in strange(env.run):
            print(f"warning: {name[:80]!r} is not the name of a checkpoint: it is not looked at", flush=True)
        path, rejected = _newest(env)
        earlier = [] if path or rejected else checkpointer.quarantine.rejected()
    except StaleEpochError as e:
        return _Found(stale=e.newest)
    except OSError as e:
        return _Found(trouble=str(e))
    if (named := dict(rejected).get(env.resume_from or "")) is not None:
        return _Found(named=named)
    for name, why in rejected:
        if path is None:
            checkpointer.quarantine.tell(Word.REJECTED, name, why)
        else:
            checkpointer.quarantine.put_away(env.run.checkpoints / name, why)
    rejected += [(p.name, "it was rejected earlier") for p in earlier]
    return _Found(path.name if path else None, tuple(rejected))


def _clear_staged(env: RankEnv) -> None:
    removed, owned = take_away(env.run, env.attempt)
    if removed:
        print(f"resume: {len(removed)} unfinished checkpoints removed: {', '.join(removed[:4])}", flush=True)
    for name in owned:
        print(f"warning: a living process still writes {name}: it cannot commit it any more", flush=True)


def _newest(env: RankEnv) -> tuple[Path | None, list[tuple[str, str]]]:
    """As `newest_verified`; once more after a second when a disk refused to be read, which proves nothing."""
    path, rejected = newest_verified(env.run, run_id=env.run_id)
    if any(UNREADABLE in why for _, why in rejected):
        time.sleep(LOOK_AGAIN_S)
        path, rejected = newest_verified(env.run, run_id=env.run_id)
    return path, rejected
