"""A resume from an older checkpoint: the newer ones are renamed, so that the older one is the newest again.

    checkpoints/aside_step_00000120_a3   written by attempt 3 or one before it, and as good as it was

Nothing is removed, here or later: they are a person's. May be done twice. Called by the supervisor before it begins
the attempt, when no rank of an older one lives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from workloads.contract.files import fsync_dir
from workloads.contract.manifest import committed
from workloads.contract.rundir import RunDir, step_of_checkpoint


def newer(run: RunDir, name: str) -> list[Path]:
    """Checkpoints of later steps than that of `name`, newest first. LookupError when it is not there; OSError."""
    found = committed(run)
    if run.checkpoints / name not in found:
        raise LookupError(f"the checkpoint {name}, which the resume asked for, is not there any more")
    return [p for p in found if (step_of_checkpoint(p.name) or 0) > (step_of_checkpoint(name) or 0)]


def set_aside(run: RunDir, checkpoints: Sequence[Path], attempt: int) -> None:
    """Newest first: a death in between leaves a run of checkpoints without a gap. OSError when the disk refuses."""
    for path in checkpoints:
        path.rename(_free(run, path.name, attempt))
    if checkpoints:
        fsync_dir(run.checkpoints)


def _free(run: RunDir, name: str, attempt: int) -> Path:
    n = 0
    while os.path.lexists(target := run.aside_checkpoint(name, attempt, n)):
        n += 1
    return target
