"""Stack dumps of a run's ranks on this pod and of everything they started, and equal ones put together. Called by the
keeper, so that dumps work with Ray dead.

Targets come from the rank records, never from a list of processes by name; descendants are found by their mark and by
their parents. Within a rank one process is asked after the other (they share a file), the rank process first; every
rank has a thread of its own, and what has not answered at the end is named and not waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pods.remote import beside, dumpfiles, stacktext
from pods.remote.dumpgroups import Group, RankDump, group
from pods.remote.family import Family, find_families
from pods.remote.procfacts import STATES, glance
from pods.remote.rankrecords import newest_attempt, process_of, record, recorded_ranks
from pods.remote.stackdump import ANSWER_S, Asker, Target, stacks_of
from workloads.contract.errors import escape
from workloads.contract.files import try_read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import RunDir

DUMP_S = 4.0  # what has not answered by then is left out
SHORT_ANSWER_S = 0.3  # of the processes of a rank after one that did not answer
MAX_PROCESSES = 64  # of one rank
MAX_NOTES = 200


@dataclass(frozen=True)
class Dump:
    """All that a dump found. `files`: names below stackdumps/."""

    dumps: list[RankDump]
    groups: list[Group]
    files: list[str]
    notes: list[str]
    seconds: float

    @property
    def summary(self) -> str:
        return stacktext.summary((g.ranks, g.where) for g in self.groups)


@dataclass
class _Findings:
    """Filled by the threads of the ranks; what comes after the end is not looked at."""

    dumps: dict[int, list[RankDump]] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)


def dump_run(run: RunDir, *, ranks: list[int] | None, why: str, by: str, watchdog: bool = False) -> Dump:
    """Dump the living ranks of the newest attempt (those in `ranks`, or all), each with its descendants.

    Dumps by rank, the rank process first; none when no rank lives here. `watchdog`: the stacks are kept in files of
    their own (`watchdog_stackdump_*`) too.
    """
    start = time.monotonic()
    attempt = newest_attempt(run)
    living = _living(run, attempt, ranks)
    if not living:
        return Dump([], [], [], [], 0.0)
    now, until = time.time(), start + DUMP_S
    asker = Asker(run, by, why, until)
    side = beside.start(run, attempt, now, until)
    found = _Findings()
    for rank in living:
        found.dumps[rank], found.notes[rank] = [], []
    families = find_families(run, attempt, living, until)

    def one(rank: int) -> None:
        extra = run.stackdump(rank, now, watchdog=watchdog)
        _dump_rank(asker, attempt, living[rank], rank, families.of(rank), found, extra)

    _all_at_once({rank: one for rank in sorted(living)}, until)
    dumps = [dump for rank in sorted(living) for dump in list(found.dumps[rank])]
    silent = [rank for rank in living if not found.dumps[rank] and living[rank].alive()]
    dumps += [_without_answer(rank, living[rank]) for rank in silent]
    dumps.sort(key=lambda d: d.rank)
    notes = [*families.notes, *(note for rank in sorted(living) for note in list(found.notes[rank]))]
    notes += [f"rank {d.rank} pid {d.pid}: {d.note}" for d in dumps if d.note]
    files, said = side.collect()
    notes += said + dumpfiles.prune(run, _spared(run, attempt))
    files += [d.file for d in dumps]
    if watchdog:
        files += [run.stackdump(r, now, watchdog=True).name for r in living if found.dumps[r]]
    there = [name for name in sorted(set(files)) if name and (run.stackdumps / name).exists()]
    return Dump(dumps, group(dumps), there, _bounded(notes), time.monotonic() - start)


def _without_answer(rank: int, ident: ProcId) -> RankDump:
    """Of a rank whose thread still hangs: what can be read without its memory."""
    state = ident.state() or ""
    note = f"it gave nothing within {DUMP_S:g} s; {glance(ident.pid)}"
    return RankDump(rank, ident.pid, "none", "", "", note, state if state in STATES else "")


def _bounded(notes: list[str]) -> list[str]:
    kept = [escape(n, 600) for n in notes[:MAX_NOTES]]
    return kept + ([f"{len(notes) - MAX_NOTES} more notes are left out"] if len(notes) > MAX_NOTES else [])


def _all_at_once(work: dict[int, Callable[[int], None]], until: float) -> None:
    """A thread a rank; those that still hang in /proc or on the disk at the end are left to themselves."""
    threads = [threading.Thread(target=do, args=(rank,), daemon=True) for rank, do in work.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _dump_rank(
    asker: Asker, attempt: int, ident: ProcId, rank: int, family: Family, found: _Findings, extra: Path
) -> None:
    """Ask the processes of one rank in turn. `extra`: where stacks go that their process did not write itself."""
    dumps, notes, answer_s = found.dumps[rank], found.notes[rank], ANSWER_S
    watchdog = extra.name.startswith("watchdog_")
    targets = [Target(ident, rank, attempt, True)]
    targets += [Target(p, rank, attempt, False) for p in family.others[:MAX_PROCESSES]]
    notes += [f"rank {rank} pid {pid}: {name} is dead and not yet reaped (state Z)" for pid, name in family.dead]
    if len(family.others) > MAX_PROCESSES:
        notes.append(f"rank {rank} has {len(family.others)} descendants: the {MAX_PROCESSES} oldest were asked")
    for i, target in enumerate(targets):
        if asker.left_s(DUMP_S) <= 0:
            notes.append(f"rank {rank}: no time was left for {len(targets) - i} of its processes")
            return
        stacks = stacks_of(asker, target, answer_s)
        if stacks is None:
            continue
        answer_s = SHORT_ANSWER_S if stacks.note.startswith("no answer") else answer_s
        failed = ""
        if stacks.how != "facts" and (watchdog or stacks.own is None):
            failed = dumpfiles.keep(extra, stacks.text)
        file = stacks.own or (extra if stacks.how != "facts" and not failed else None)
        note = "; ".join(filter(None, (stacks.note, failed)))
        dumps.append(
            RankDump(rank, target.ident.pid, stacks.how, file.name if file else "", stacks.text, note, stacks.state,
                     target.is_rank, stacks.worker)
        )  # fmt: skip


def _living(run: RunDir, attempt: int, ranks: list[int] | None) -> dict[int, ProcId]:
    """Rank -> its process, for unfinished records whose process lives."""
    wanted = [r for r in recorded_ranks(run, attempt) if ranks is None or r in ranks]
    found = {rank: process_of(record(run, attempt, rank)) for rank in wanted}
    return {rank: ident for rank, ident in found.items() if ident is not None and ident.alive()}


def _spared(run: RunDir, attempt: int) -> set[str]:
    """Names of the files that this attempt's own processes write to."""
    names = set()
    for path in run.attempt_dir(attempt).glob("rank*.order.json"):
        env = (try_read_json(path) or {}).get("env")
        if isinstance(env, dict):
            names.add(Path(str(env.get("ORCH_STACKDUMP", ""))).name)
    return names
