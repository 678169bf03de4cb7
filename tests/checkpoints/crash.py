"""`python -m tests.checkpoints.crash FOLDER [without WHAT]`: what a power cut leaves of a save, on an ext4.

A run lies on an ext4 in a file, mounted so that nothing is committed but by fsync. Before each step of its third save
the file is copied, as a power cut would leave it; each copy is mounted, and the next attempt looks. A JSON line each:
{n, at, newest, verified, rejected}; the last one, with `at` null, is of the moment after the save had said it was done.

`without directories` or `without files`: the fsyncs of these do nothing, to see that they are needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints.disks import Unavailable, ext4, mounted, need
from tests.checkpoints.killer import NEW, NEWEST, OLD, in_child, next_attempt, plain
from tests.checkpoints.saver import RUN_ID, checkpointer, make_run, save
from tests.checkpoints.steps import Steps
from workloads.contract.rundir import RunDir

UNAVAILABLE = 3
WITHOUT: dict[str, Callable[[int], bool]] = {"directories": stat.S_ISDIR, "files": stat.S_ISREG}


def without(what: str) -> None:
    """From now on fsync of such a file does nothing in this process."""
    real, is_one = os.fsync, WITHOUT[what]

    def fsync(fd: int) -> None:
        if not is_one(os.fstat(fd).st_mode):
            real(fd)

    os.fsync = fsync  # type: ignore[assignment]


def saved(folder: Path, image: Path, what: str | None) -> list[tuple[str | None, Path]]:
    """(step, copy of the disk before it) for every step of the third save, and one of the moment after it."""
    run = make_run(folder / "disk")
    saver = checkpointer(run)
    assert save(saver, OLD) and save(saver, NEWEST)
    os.sync()
    copies: list[tuple[str | None, Path]] = []

    def copy(name: str | None) -> None:
        copies.append((name, folder / f"copy{len(copies)}"))
        subprocess.run(["cp", "--sparse=always", str(image), str(copies[-1][1])], check=True)

    if what:
        without(what)
    Steps(run.path, lambda _, name: copy(name))
    assert save(saver, NEW) == run.checkpoint(NEW)
    copy(None)
    return copies


def main(folder: Path, what: str | None) -> None:
    image = folder / "image"
    need("mkfs.ext4", "mount", "cp")
    with ext4(image, folder / "disk"):
        status, told = in_child(lambda put: os.write(put, json.dumps(saved(folder, image, what), default=str).encode()))
    if status:
        raise SystemExit(f"the save failed: {status}")
    for n, (at, copy) in enumerate(json.loads(told)):
        with mounted(folder / "found", "-o", "loop", copy), contextlib.redirect_stderr(sys.stdout):
            after, found = in_child(lambda put: os.write(put, json.dumps(look(folder / "found")).encode()))
        if after:
            raise SystemExit(f"no resume after a power cut before step {n} ({at}): status {after}")
        print(json.dumps({"n": n, "at": at, **json.loads(found)}), flush=True)
        Path(copy).unlink()


def look(disk: Path) -> dict[str, object]:
    os.dup2(2, 1)
    return next_attempt(RunDir(disk / RUN_ID), plain)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else None)
    except Unavailable as e:
        print(e, file=sys.stderr)
        sys.exit(UNAVAILABLE)
