"""Staged directories: where a checkpoint is made, who owns it, and how a newer attempt takes it away.

Rank 0 holds a lock (flock) on the staged directory itself for as long as it lives. A newer attempt renames whatever
older ones left before it looks for a checkpoint: an older rank that is still about to commit finds nothing to rename,
however late it wakes. What was taken away is removed once no process holds its lock. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path

from workloads.contract.rundir import STAGED_PREFIX, RunDir

TAKEN_PREFIX = f"{STAGED_PREFIX}taken_"
_OWNED = re.compile(r"step_\d+_a(\d{1,9})", re.ASCII)


class Staged:
    """A new, empty staged directory, owned by this process until `drop` or its end."""

    def __init__(self, path: Path) -> None:
        """OSError when it cannot be made. What an earlier try of this attempt left there is removed."""
        if path.exists():
            shutil.rmtree(path)
        path.parent.mkdir(exist_ok=True, mode=0o700)  # no parents: a run directory that is away is not born anew
        path.mkdir(mode=0o700)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a disk without locks: nobody else touches this attempt's directory
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def drop(self) -> None:
        """Own it no longer; what still lies under the staged name is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        shutil.rmtree(self.path, ignore_errors=True)


def drop_failed(run: RunDir, attempt: int) -> None:
    """Remove what earlier saves of this attempt could not remove: their disk was read-only or away. Before a save."""
    for name in _left(run):
        made_by = _OWNED.fullmatch(name.removeprefix(STAGED_PREFIX))
        if made_by and int(made_by[1]) == attempt:
            shutil.rmtree(run.checkpoints / name, ignore_errors=True)


def is_owned(path: Path) -> bool:
    """True while a living process holds the staged directory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks: older attempts were ended before this one began
        return False
    finally:
        os.close(fd)
    return False


def take_away(run: RunDir, attempt: int) -> tuple[list[str], list[str]]:
    """Clear what saves of older attempts left: (removed, still owned by a living process). Called before a resume.

    What a newer attempt stages is left alone. OSError when a directory could not be taken away: an older rank might
    still commit it.
    """
    removed, owned = [], []
    for name in _left(run):
        made_by = _OWNED.fullmatch(name.removeprefix(STAGED_PREFIX))
        if made_by and int(made_by[1]) > attempt:
            continue
        path = run.checkpoints / name
        if not name.startswith(TAKEN_PREFIX):
            path = path.rename(_free(run, f"{TAKEN_PREFIX}a{attempt}_{name.removeprefix(STAGED_PREFIX)[:100]}"))
        if is_owned(path):
            owned.append(name)
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(name)
    return removed, owned


def _left(run: RunDir) -> list[str]:
    try:
        entries = [e for e in os.scandir(run.checkpoints) if e.name.startswith(STAGED_PREFIX)]
    except FileNotFoundError:
        return []
    return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))


def _free(run: RunDir, name: str) -> Path:
    n = 0
    while (run.checkpoints / (name if not n else f"{name}_{n}")).exists():
        n += 1
    return run.checkpoints / (name if not n else f"{name}_{n}")
