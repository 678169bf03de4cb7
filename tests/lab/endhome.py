"""End everything that an $ORCH_HOME on this machine started, by pid. For tests that start a real keeper and Ray."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from pods.keeper.client import running
from workloads.contract.process import ProcId, marked
from workloads.contract.rundir import OrchHome

PASSES = 5


def end_home(home: OrchHome) -> None:
    """Ranks and whatever carries a run's mark, the keeper, Ray with its temporary folder.

    Keeper and supervisors start each other: what came back between two signals is found by the next pass.
    """
    for _ in range(PASSES):
        if not _end(home):
            return
        time.sleep(0.1)


def _end(home: OrchHome) -> int:
    """How many processes were signalled."""
    found = [ident for path in _folders(home.runs) for ident in marked(path.name)]
    record = running(home)
    if record:
        found.append(ProcId(record["pid"], record["start_time"], record["boot_id"]))
    clusters = _folders(home.path / "ray")
    found += [ident for folder in clusters for ident in marked(folder.name, "ORCH_CLUSTER")]
    for ident in found:
        ident.signal(signal.SIGKILL)
    if record:
        shutil.rmtree(Path(record["socket"]).parent, ignore_errors=True)
    for folder in clusters:
        shutil.rmtree(f"/tmp/orch-{os.getuid()}-ray-{folder.name[:8]}", ignore_errors=True)
    return len(found)


def _folders(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []
