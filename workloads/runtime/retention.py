"""Which checkpoints stay: the newest N that verified, those of `keep_every`, and everything that is damaged.

A damaged checkpoint is evidence and is never removed here; it never counts as one of the N. Standard library only.
Called by the checkpoint writer on rank 0 after a commit.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from workloads.contract.rundir import STAGED_PREFIX, RunDir, step_of_checkpoint
from workloads.runtime.manifest import committed, verify


@dataclass
class Retention:
    keep: int
    keep_every: int | None = None
    _verified: set[str] = field(default_factory=set)  # names that verified in this process

    def trust(self, name: str) -> None:
        """`name` was written or verified by this process: it is not hashed again."""
        self._verified.add(name)

    def prune(self, run: RunDir) -> list[str]:
        """Remove what is too old; returns the names. OSError when the disk does not let us."""
        good = [p for p in committed(run) if self._good(p)]
        removed = []
        for path in good[max(2, self.keep) :]:
            if self.keep_every and (step_of_checkpoint(path.name) or 0) % self.keep_every == 0:
                continue
            # renamed first: a half-removed directory must not look like a checkpoint
            doomed = path.with_name(f"{STAGED_PREFIX}removed_{path.name}")
            path.rename(doomed)
            shutil.rmtree(doomed)
            removed.append(path.name)
        return removed

    def _good(self, path: Path) -> bool:
        if path.name not in self._verified and not verify(path):
            self._verified.add(path.name)
        return path.name in self._verified


def remove_staged(run: RunDir) -> list[str]:
    """Remove what unfinished saves left. At the start of an attempt every staged directory is an older attempt's."""
    removed = []
    for path in sorted(run.checkpoints.glob(f"{STAGED_PREFIX}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed
