"""Which checkpoints stay: the newest N that verified, and those of `keep_every`. At least two, always.

A checkpoint counts as one of the N only if this process has read all of it and no file of it has changed since (inode,
size, times): what was hashed once and then altered is hashed again before anything older is removed. To hash it at
every save would read the page cache and not the disk, at the price of the save itself; a resume reads everything.
What does not verify is put away, not removed. Called by the checkpoint writer on rank 0 after a commit.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from workloads.contract.manifest import UNREADABLE, committed, look, verify
from workloads.contract.rundir import STAGED_PREFIX, RunDir, step_of_checkpoint
from workloads.runtime.quarantine import Quarantine

MIN_KEPT = 2
Stamp = tuple[tuple[str, int, int, int, int], ...]


def stamp(checkpoint: Path) -> Stamp | None:
    """What changes when any file of `checkpoint` does: (name, inode, size, mtime, ctime) of each. None: unreadable."""
    try:
        entries = [(e.name, e.stat(follow_symlinks=False)) for e in os.scandir(checkpoint)]
    except OSError:
        return None
    return tuple(sorted((n, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in entries))


@dataclass
class Retention:
    keep: int
    keep_every: int | None = None
    _verified: dict[str, Stamp] = field(default_factory=dict)

    def trust(self, checkpoint: Path) -> None:
        """This process wrote or verified all of `checkpoint`: it is not hashed again while it does not change."""
        if (now := stamp(checkpoint)) is not None:
            self._verified[checkpoint.name] = now

    def prune(self, run: RunDir, quarantine: Quarantine) -> list[str]:
        """Remove what is too old; returns the names. OSError when the disk does not let us."""
        good, removed = 0, []
        for path in committed(run):
            if good < max(MIN_KEPT, self.keep):
                good += self._counts(path, quarantine)
            elif not self._kept_for_good(path) and not _put_away(path, look(path)[1], quarantine):
                _remove(path)
                removed.append(path.name)
        self._verified = {name: s for name, s in self._verified.items() if name not in removed}
        return removed

    def _kept_for_good(self, path: Path) -> bool:
        return bool(self.keep_every) and (step_of_checkpoint(path.name) or 0) % (self.keep_every or 1) == 0

    def _counts(self, path: Path, quarantine: Quarantine) -> bool:
        """True when `path` is known to be good."""
        before = stamp(path)
        if before is None or self._verified.get(path.name) == before:
            return before is not None
        problems = verify(path)
        if not problems:
            self._verified[path.name] = before
        return not _put_away(path, problems, quarantine)


def _put_away(path: Path, problems: list[str], quarantine: Quarantine) -> bool:
    """False when there are no problems. What merely cannot be read is left where it is: that proves nothing."""
    if problems and not any(UNREADABLE in p for p in problems):
        quarantine.put_away(path, "; ".join(problems))
    return bool(problems)


def _remove(path: Path) -> None:
    # renamed first: a half-removed directory must not look like a checkpoint
    doomed = path.with_name(f"{STAGED_PREFIX}removed_{path.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    path.rename(doomed)
    shutil.rmtree(doomed)
