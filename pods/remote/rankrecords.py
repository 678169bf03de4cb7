"""Attempts and rank records of a run directory, as those who look after ranks on a pod read them. Reads only.

Nothing in them is trusted: a file that is torn or foreign is like none. Called by `dump`, `left`, `reap`, `podhealth`
and the guard of the keeper.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from workloads.contract.files import try_read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import RunDir

_ATTEMPT = re.compile(r"a(\d{1,9})", re.ASCII)
_RECORD = re.compile(r"rank(\d{1,6})\.json", re.ASCII)


def newest_attempt(run: RunDir) -> int:
    """The number of the newest attempt that left a directory; 0 when there is none."""
    return max((int(m[1]) for m in map(_ATTEMPT.fullmatch, _names(run.ranks)) if m), default=0)


def recorded_ranks(run: RunDir, attempt: int) -> list[int]:
    """Ranks of this attempt that have a record, by number."""
    return sorted(int(m[1]) for m in map(_RECORD.fullmatch, _names(run.attempt_dir(attempt))) if m)


def record(run: RunDir, attempt: int, rank: int) -> dict[str, Any]:
    """{} when there is none."""
    return try_read_json(run.rank_record(attempt, rank)) or {}


def process_of(row: Mapping[str, Any]) -> ProcId | None:
    """The process of a record that does not say how it ended."""
    pid, start_time, boot = row.get("pid"), row.get("start_time"), row.get("boot_id")
    if "ended" in row or type(pid) is not int or type(start_time) is not int or not isinstance(boot, str) or pid < 2:
        return None
    return ProcId(pid, start_time, boot)


def _names(folder: os.PathLike[str]) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
