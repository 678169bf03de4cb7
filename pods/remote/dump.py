"""Stack dumps of a run's ranks on this pod, and putting equal ones together. Called by the keeper, so that dumps work
with Ray dead.

Targets come from the rank records, never from a list of processes by name. Within a rank one process is asked after
the other (they share a file); ranks are asked in parallel.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pods.remote.stackdump import Asker, Target, stacks_of
from workloads.contract.files import try_read_json
from workloads.contract.process import MARK, ProcId, environ_of, marked, rank_mark
from workloads.contract.rundir import RunDir

MAX_THREADS = 16
PY_SPY_BUDGET_S = 4.0
MAX_PROCESSES = 64  # of one rank
MAX_GROUPS_CHARS = 400_000  # of all groups together: an answer has to stay readable


@dataclass(frozen=True)
class RankDump:
    rank: int
    pid: int
    how: str  # faulthandler, py-spy, none
    file: str  # name below stackdumps/
    text: str  # header and stacks, bounded
    note: str = ""  # why it was not faulthandler


def dump_run(run: RunDir, *, ranks: list[int] | None, why: str, by: str) -> list[RankDump]:
    """Dump the living ranks of the newest attempt (those in `ranks`, or all), each with its Python descendants.

    Ordered by rank, the rank process first. Empty when none lives here.
    """
    attempt = _newest_attempt(run)
    living = {} if attempt is None else _living(run, attempt, ranks)
    if attempt is None or not living:
        return []
    asker = Asker(run, by, why, time.monotonic() + PY_SPY_BUDGET_S)
    helpers = _helpers(run, attempt, living)

    def one(rank: int) -> list[RankDump]:
        targets = [Target(living[rank], rank, attempt, True)]
        targets += [Target(p, rank, attempt, False) for p in helpers[rank][:MAX_PROCESSES]]
        found = ((t, stacks_of(asker, t)) for t in targets)
        return [RankDump(rank, t.ident.pid, s.how, s.file.name, s.text, s.note) for t, s in found if s is not None]

    with ThreadPoolExecutor(min(len(living), MAX_THREADS)) as pool:
        return [dump for dumps in pool.map(one, sorted(living)) for dump in dumps]


def _newest_attempt(run: RunDir) -> int | None:
    try:
        names = [p.name for p in run.ranks.iterdir()]
    except OSError:
        return None
    return max((int(m[1]) for m in (re.fullmatch(r"a(\d{1,9})", n) for n in names) if m), default=None)


def _living(run: RunDir, attempt: int, ranks: list[int] | None) -> dict[int, ProcId]:
    """Rank -> its process, for unfinished records whose process lives."""
    found = {}
    for path in run.attempt_dir(attempt).glob("rank*.json"):
        m = re.fullmatch(r"rank(\d{1,6})\.json", path.name)
        if m is None or (ranks is not None and int(m[1]) not in ranks):
            continue
        ident = _process(try_read_json(path) or {})
        if ident is not None and ident.alive():
            found[int(m[1])] = ident
    return found


def _process(row: dict[str, Any]) -> ProcId | None:
    pid, start_time, boot = row.get("pid"), row.get("start_time"), row.get("boot_id")
    if "ended" in row or type(pid) is not int or type(start_time) is not int or not isinstance(boot, str) or pid < 2:
        return None
    return ProcId(pid, start_time, boot)


def _helpers(run: RunDir, attempt: int, living: dict[int, ProcId]) -> dict[int, list[ProcId]]:
    """Rank -> other processes with its mark, oldest first. One look at /proc for all ranks."""
    marks = {rank_mark(run.run_id, attempt, rank): rank for rank in living}
    helpers: dict[int, list[ProcId]] = {rank: [] for rank in living}
    for ident in marked(f"{run.run_id}/a{attempt}"):
        rank = marks.get(environ_of(ident.pid).get(MARK, ""))
        if rank is not None and ident != living[rank]:
            helpers[rank].append(ident)
    return {rank: sorted(found, key=lambda p: (p.start_time, p.pid)) for rank, found in helpers.items()}


_NOISE = (
    (re.compile(r"^=== orch stack dump .*\n?", re.MULTILINE), ""),
    (re.compile(r"^Process \d+: .*\n?", re.MULTILINE), ""),  # py-spy: pid and command line, which may name the rank
    (re.compile(r"0x[0-9a-fA-F]+"), "0x"),
    (re.compile(r"\b(Thread|pid|process) ?\d+"), r"\1"),
    (re.compile(r"(?m)^(syscall|stack): .*\n?"), ""),
)


def normalised(text: str) -> str:
    """`text` without what differs between equal stacks: header, pids, thread ids, addresses."""
    for pattern, plain in _NOISE:
        text = pattern.sub(plain, text)
    return text


def group(dumps: Sequence[RankDump]) -> list[tuple[tuple[int, ...], str]]:
    """(ranks, the text of the first of them) for each different stack; the smallest group, the odd one, first."""
    whole: dict[int, list[str]] = {}
    for dump in dumps:
        whole.setdefault(dump.rank, []).append(dump.text)
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank in sorted(whole):
        groups.setdefault(tuple(normalised(text) for text in whole[rank]), []).append(rank)
    ordered = sorted(groups.values(), key=lambda ranks: (len(ranks), ranks))
    share = MAX_GROUPS_CHARS // max(1, len(ordered))
    return [(tuple(ranks), _cut("".join(whole[ranks[0]]), share)) for ranks in ordered]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "\n... cut here; the dump files have the rest\n"
