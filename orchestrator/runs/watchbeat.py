"""The heartbeat of `orch watch` itself: a small file in `$ORCH_HOME/watch`, so that others can say "unwatched since".

Nothing depends on it: a watch that is killed or stopped changes nothing for any run. It is told only where a watch was
once started and was not ended on purpose (Ctrl-C takes its file away).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome

LATE_S = 60.0
MAX_FILES = 64


class Beat:
    """Written by one `orch watch`. Trouble with the disk is none of the watch's business."""

    def __init__(self, home: OrchHome, about: Sequence[str]) -> None:
        self.begun = False
        self._path = home.watches / f"{os.getpid()}.json"
        self._row = {"v": 1, **asdict(ProcId.me()), "started": time.time(), "about": list(about)[:100]}
        with contextlib.suppress(OSError):
            home.watches.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path, row in _files(home):
                if not _lives(row):
                    path.unlink()  # this one takes its place

    def beat(self) -> None:
        self.begun = True
        with contextlib.suppress(OSError):
            atomic_write_json(self._path, {**self._row, "ts": time.time()}, durable=False)

    def end(self) -> None:
        """It was ended on purpose."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def unwatched_since(home: OrchHome, now: float) -> float | None:
    """Unix seconds of the last look of any watch, where one was started and none looks any more; else None."""
    last: float | None = None
    for _, row in _files(home):
        ts = row.get("ts")
        if not isinstance(ts, int | float) or not 0 < ts < 1e11:
            continue
        if _lives(row) and now - ts <= LATE_S:
            return None
        last = max(float(ts), last or 0.0)
    return last


def _files(home: OrchHome) -> list[tuple[Path, dict[str, Any]]]:
    try:
        names = sorted(n for n in os.listdir(home.watches) if n.endswith(".json"))[:MAX_FILES]
    except OSError:
        return []
    rows = ((home.watches / n, try_read_json(home.watches / n)) for n in names)
    return [(path, row) for path, row in rows if row is not None]


def _lives(row: dict[str, Any]) -> bool:
    pid, start_time, boot = row.get("pid"), row.get("start_time"), row.get("boot_id")
    if type(pid) is not int or type(start_time) is not int or not isinstance(boot, str) or pid < 2:
        return False
    return ProcId(pid, start_time, boot).alive()
