"""Damaged checkpoints: put away under a name of their own, told, kept in a bounded number.

    checkpoints/rejected_step_00000120_a3   as it was found by attempt 3

Every rejection is a line in `checkpoints/trouble.jsonl`, written before the rename. The newest `KEPT` are kept; older
ones go, and go first when a new checkpoint needs their room, each with a line of its own. Never touches a checkpoint
under its own name but to rename it. Called on rank 0 by the resume and by the writer.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from workloads.contract.rundir import REJECTED_PREFIX, RunDir
from workloads.contract.trouble import Trouble, TroubleBook, Word

KEPT = 4
"""Damaged checkpoints that stay: enough to see what happened, and their room is bounded."""


class Quarantine:
    """Of one run, for one attempt."""

    def __init__(self, run: RunDir, attempt: int, book: TroubleBook | None = None) -> None:
        self._run, self._attempt = run, attempt
        self.book = book or TroubleBook(run)

    def tell(self, what: Word, checkpoint: str, why: str, kept_as: str | None = None) -> None:
        self.book.write(Trouble(what, checkpoint, why, self._attempt, time.time(), kept_as))

    def put_away(self, path: Path, why: str) -> Path | None:
        """Rename `path` to its rejected name. None when the disk refuses: it stays, and is rejected again next time."""
        target = self._free(path.name)
        self.tell(Word.REJECTED, path.name, why, target.name)
        try:
            path.rename(target)
        except OSError as e:
            self.tell(Word.REJECTED, path.name, f"it stays where it is: {e.strerror}")
            return None
        for old in self.rejected()[KEPT:]:
            self._drop(old, f"{KEPT} damaged ones are kept, and it was the oldest")
        return target

    def rejected(self) -> list[Path]:
        """Newest first, by the time of the rename."""
        try:
            found = [(e.stat(follow_symlinks=False).st_ctime_ns, e.name) for e in os.scandir(self._run.checkpoints)
                     if e.name.startswith(REJECTED_PREFIX)]  # fmt: skip
        except OSError:
            return []
        return [self._run.checkpoints / name for _, name in sorted(found, reverse=True)]

    def make_room(self, need_bytes: int) -> int | None:
        """Free bytes where checkpoints lie, after damaged ones were removed as far as `need_bytes` asks for it.

        None when the disk does not say.
        """
        free = free_bytes(self._run.checkpoints)
        for old in reversed(self.rejected()):
            if free is None or free >= need_bytes:
                break
            self._drop(old, f"its room was needed: {free >> 20} MiB free, {need_bytes >> 20} MiB needed")
            free = free_bytes(self._run.checkpoints)
        return free

    def _drop(self, path: Path, why: str) -> None:
        self.tell(Word.DROPPED, path.name, why)
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)

    def _free(self, name: str) -> Path:
        n, short = 0, name[:80]
        while os.path.lexists(target := self._run.rejected_checkpoint(short, self._attempt, n)):
            n += 1
        return target


def free_bytes(path: Path) -> int | None:
    """What this user may still write where `path` lies. None when the file system does not say."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail  # root may use what a disk keeps in reserve
    return blocks * disk.f_frsize if disk.f_blocks else None
