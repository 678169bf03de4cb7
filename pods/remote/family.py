"""The descendants of a run's ranks on this pod: by their mark, and those that lost it by their parents.

One look at /proc for all ranks. A process whose memory is locked makes the reader of its environment hang: the look has
a thread of its own, and without it descendants are found by their parents alone. Called by `dump`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pods.remote.procfacts import name_of
from workloads.contract.process import MARK, ProcId, ProcStat, all_pids, boot_id, environ_of, marked, read_stat
from workloads.contract.rundir import RunDir

LOOK_S = 1.5
MAX_DEAD = 16  # named, of one rank


@dataclass
class Family:
    """Of one rank. `others`: living descendants, oldest first; `dead`: (pid, name) of those in state Z."""

    others: list[ProcId] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Families:
    by_rank: Mapping[int, Family]
    notes: list[str]

    def of(self, rank: int) -> Family:
        return self.by_rank.get(rank) or Family()


def find_families(run: RunDir, attempt: int, living: Mapping[int, ProcId], until: float) -> Families:
    """The families of the ranks in `living`. Returns by `until` (monotonic seconds), or after `LOOK_S`."""
    marks: dict[int, int] = {}
    notes: list[str] = []
    look = threading.Thread(target=_look, args=(run, attempt, marks), daemon=True)
    look.start()
    stats = {st.pid: st for pid in all_pids() if (st := read_stat(pid)) is not None}
    look.join(max(0.0, min(LOOK_S, until - time.monotonic())))
    if look.is_alive():
        notes.append(f"the environments in /proc could not be read within {LOOK_S:g} s: descendants by parents alone")
    by_pid = {ident.pid: rank for rank, ident in living.items()}
    families = {rank: Family() for rank in living}
    seen, boot = dict(marks), boot_id()
    for pid, st in sorted(stats.items(), key=lambda item: (item[1].start_time, item[0])):
        rank = seen.get(pid, _by_parents(st, stats, by_pid))
        if rank not in families or pid in by_pid:
            continue
        if st.state not in "ZX":
            families[rank].others.append(ProcId(pid, st.start_time, boot))
        elif len(families[rank].dead) < MAX_DEAD:
            families[rank].dead.append((pid, name_of(pid)))
    return Families(families, notes)


def _look(run: RunDir, attempt: int, marks: dict[int, int]) -> None:
    prefix = f"{run.run_id}/a{attempt}"
    pattern = re.compile(re.escape(prefix) + r"/r(\d{1,6})")
    for ident in marked(prefix):
        m = pattern.fullmatch(environ_of(ident.pid).get(MARK, ""))
        if m:
            marks[ident.pid] = int(m[1])


def _by_parents(st: ProcStat, stats: Mapping[int, ProcStat], by_pid: Mapping[int, int]) -> int:
    """The rank whose process is an ancestor; -1 when none is."""
    for _ in range(64):  # a cycle is possible where pids were reused while we looked
        if st.ppid in by_pid:
            return by_pid[st.ppid]
        parent = stats.get(st.ppid)
        if parent is None:
            return -1
        st = parent
    return -1
