"""`python -m tests.checkpoints.stale FOLDER`: a save during whose n-th step a newer attempt takes the run, for every n.

Each n twice: the newer attempt has its epoch only; or it has looked for its checkpoint as well, between the old rank's
epoch check and its rename if need be. A JSON line each: {n, at, looked, how, mine, newest}.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

from tests.checkpoints.killer import NEW, NEWEST, OLD, in_child
from tests.checkpoints.saver import checkpointer, leftovers, make_run, save, verified
from tests.checkpoints.steps import Steps
from workloads.contract.rundir import RunDir
from workloads.runtime.fence import StaleEpochError
from workloads.train.resume import choose

MAX_STEPS = 100


def played(run: RunDir, n: int, looked: bool) -> dict[str, object]:
    """What became of the old rank's save, and what the newer attempt took."""
    found: dict[str, object] = {"n": n, "at": None, "looked": looked}
    old, new = checkpointer(run, 1), checkpointer(run, 2)
    with contextlib.redirect_stdout(sys.stderr):
        choose(old)

        def deed(now: int, name: str) -> None:
            if now == n:
                found["at"] = name
                run.epoch.write_text("2\n")
                if looked:
                    found["newest"] = str(choose(new))[-8:]

        Steps(run.path, deed)
        try:
            found["how"] = "saved" if save(old, NEW) else "failed"
        except StaleEpochError:
            found["how"] = "stale"
        if found["at"] is not None and not looked:
            found["newest"] = str(choose(new))[-8:]
    return {**found, "verified": verified(run), "left": leftovers(run)}


def main(folder: Path) -> None:
    base = make_run(folder / "base")
    first = checkpointer(base)
    assert save(first, OLD) and save(first, NEWEST)
    for n in range(MAX_STEPS):
        told = b""
        for looked in (False, True):
            run = RunDir(folder / f"{n}{looked}" / base.run_id)
            shutil.copytree(base.path, run.path)

            def work(put: int, run: RunDir = run, n: int = n, looked: bool = looked) -> None:
                os.write(put, json.dumps(played(run, n, looked)).encode())

            status, told = in_child(work)
            assert status == 0, status
            print(told.decode(), flush=True)
        if json.loads(told)["at"] is None:
            return
    raise SystemExit("a save of more steps than that")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
