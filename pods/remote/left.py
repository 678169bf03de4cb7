"""What still lives of a run on this machine, also what no longer carries its mark.

A process is the run's when its environment has the mark; when it is in the session of one of its ranks; or when its
output is the log of one of its ranks. The last two find what cleared its environment and lost its shim. What did all of
it (own session, empty environment, output elsewhere) after its shim was killed has left no trace that a process without
root could follow; while the shim lives nothing gets away, since everything below it is its descendant.

Only reads. Called by the keeper (sweeps, lost shims) and by the supervisor's look at a pod.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pods.remote.rankrecords import newest_attempt, record, recorded_ranks
from workloads.contract.process import ProcId, ProcStat, all_pids, boot_id, marked, read_stat
from workloads.contract.rundir import RunDir

CLOCK_S = 2.0
"""A start time is counted in hundredths of a second after the boot, an end by the clock."""


@dataclass(frozen=True)
class _Session:
    """The session that a rank leads, or led."""

    pid: int
    start_time: int
    ended: float | None  # Unix seconds of the rank's end


def left_of(run: RunDir, attempt: int | None = None, rank: int | None = None) -> list[ProcId]:
    """Living processes of `run`, by pid; of one rank with `attempt` and `rank`. The caller itself is not among them."""
    mark = run.run_id if attempt is None or rank is None else f"{run.run_id}/a{attempt}/r{rank}"
    found = {p.pid: p for p in marked(mark)}
    sessions = {s.pid: s for s in _sessions(run, attempt, rank)}
    logs = _logs(run, rank)
    boot = boot_id()
    seen = [st for pid in all_pids() if (st := read_stat(pid)) is not None and st.state not in "ZX"]
    members: dict[int, list[ProcStat]] = {}
    for st in seen:
        members.setdefault(st.session, []).append(st)
    ours = {sid for sid, who in members.items() if sid in sessions and _still_ours(sessions[sid], who)}
    for st in seen:
        if st.session in ours or _writes_to(st.pid, logs):
            found[st.pid] = ProcId(st.pid, st.start_time, boot)
    found.pop(os.getpid(), None)
    return [found[pid] for pid in sorted(found)]


def _still_ours(session: _Session, members: list[ProcStat]) -> bool:
    """Whether a session of this number is the rank's. The number is not given again while anybody is in it; so it is
    the rank's when the rank leads it still, or when a member is from the rank's time."""
    leader = next((m for m in members if m.pid == session.pid), None)
    if leader is not None:
        return leader.start_time == session.start_time
    oldest = min(m.start_time for m in members)
    return oldest >= session.start_time and (session.ended is None or _unix(oldest) <= session.ended + CLOCK_S)


def _unix(start_time: int) -> float:
    """When a process was started, in Unix seconds."""
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_time / os.sysconf("SC_CLK_TCK")
    return time.time() - up_s


def _writes_to(pid: int, logs: set[tuple[int, int]]) -> bool:
    for fd in (1, 2):
        try:
            st = Path(f"/proc/{pid}/fd/{fd}").stat()
        except OSError:
            return False
        if (st.st_dev, st.st_ino) in logs:
            return True
    return False


def _logs(run: RunDir, rank: int | None) -> set[tuple[int, int]]:
    found = set()
    for path in _rank_logs(run) if rank is None else [run.rank_log(rank)]:
        try:
            st = path.lstat()
        except OSError:
            continue
        found.add((st.st_dev, st.st_ino))
    return found


def _rank_logs(run: RunDir) -> Iterator[Path]:
    try:
        names = os.listdir(run.logs)
    except OSError:
        return iter(())
    return (run.logs / n for n in names if n.startswith("rank") and n.endswith(".log"))


def _sessions(run: RunDir, attempt: int | None, rank: int | None) -> Iterator[_Session]:
    """Of the ranks of an attempt, by default the newest: none is started before the older ones are gone."""
    number = attempt if attempt is not None else newest_attempt(run)
    boot = boot_id()
    for recorded in recorded_ranks(run, number) if rank is None else [rank]:
        row = record(run, number, recorded)
        pid, start_time = row.get("pid"), row.get("start_time")
        if type(pid) is int and type(start_time) is int and pid > 1 and row.get("boot_id") == boot:
            ended = row.get("ended")
            yield _Session(pid, start_time, float(ended) if isinstance(ended, int | float) else None)
