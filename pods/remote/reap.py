"""Finishing the records of ranks whose shim is gone. Called by the keeper once a second for each run that goes on.

A shim that is killed takes its rank along (PDEATHSIG), but nobody is left to sweep and to write the record. A free
rank lock with an unfinished record says exactly that. An order without a record is not ours: the supervisor has its
shim started again. A shim that somebody stopped (SIGSTOP) sees nothing and reaps nothing: it is woken.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pods.remote.left import left_of
from pods.remote.rankrecords import recorded_ranks
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.process import ProcId, boot_id, sweep
from workloads.contract.rundir import RunDir

GRACE_S = 3.0
MAX_THREADS = 8


def reap_lost(run: RunDir, attempt: int) -> list[int]:
    """Finish what lost shims left: sweep, then the record with cause `shim-lost`. The ranks finished.

    A record that cannot be written (disk full) stays as it is and is tried again at the next call.
    """
    lost = [rank for rank in recorded_ranks(run, attempt) if _looks_lost(run, attempt, rank)]
    if not lost:
        return []
    with ThreadPoolExecutor(min(len(lost), MAX_THREADS)) as pool:  # a sweep may take seconds
        done = list(pool.map(lambda rank: _finish(run, attempt, rank), lost))
    return [rank for rank, finished in zip(lost, done, strict=True) if finished]


def wake_stopped(run: RunDir, attempt: int) -> list[int]:
    """Continue the shims of ranks that have not ended and that are in state T; the ranks whose shim was woken."""
    return [rank for rank in recorded_ranks(run, attempt) if _wake(_unfinished(run, attempt, rank) or {})]


def _wake(row: dict[str, Any]) -> bool:
    pid, start_time = row.get("shim_pid"), row.get("shim_start_time")
    if type(pid) is not int or type(start_time) is not int or pid <= 1:
        return False
    shim = ProcId(pid, start_time, str(row.get("boot_id")))
    return shim.state() == "T" and shim.signal(signal.SIGCONT)


def _looks_lost(run: RunDir, attempt: int, rank: int) -> bool:
    if _unfinished(run, attempt, rank) is None:
        return False
    with _locked(run, attempt, rank) as ours:
        return ours


def _unfinished(run: RunDir, attempt: int, rank: int) -> dict[str, Any] | None:
    row = try_read_json(run.rank_record(attempt, rank))
    return None if row is None or "ended" in row else row


@contextmanager
def _locked(run: RunDir, attempt: int, rank: int) -> Iterator[bool]:
    """Hold the rank's lock. False when its shim, or another keeper, has it."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(run.rank_lock(attempt, rank), flags, 0o600)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)


def _finish(run: RunDir, attempt: int, rank: int) -> bool:
    with _locked(run, attempt, rank) as ours:
        row = _unfinished(run, attempt, rank) if ours else None
        if row is None:
            return False
        now = time.time()
        swept: list[int] = []
        stayed: list[int] = []
        if row.get("boot_id") != boot_id():
            error = "this machine was started anew (its boot id changed) while the rank ran"
        else:
            _kill_rank(row)
            swept, stayed = sweep(lambda: left_of(run, attempt, rank), GRACE_S)
            error = "its shim was killed, and the rank with it"
        end = {"ended": now, "cause": "shim-lost", "error": error, "swept": swept, "stayed": stayed}
        try:
            atomic_write_json(run.rank_record(attempt, rank), row | end)
        except OSError:
            return False
        return True


def _kill_rank(row: dict[str, Any]) -> None:
    """It died with its shim, unless it had become a set-uid program, for which PDEATHSIG is cleared."""
    pid, start_time = row.get("pid"), row.get("start_time")
    if type(pid) is int and type(start_time) is int and pid > 1:
        ProcId(pid, start_time, str(row["boot_id"])).signal(signal.SIGKILL)
