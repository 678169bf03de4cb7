"""Dump requests of this pod's runs: carried out, answered, and refused where they come too thick.

A dump costs files and a moment of every rank, so there are at most so many a minute; a watchdog has a budget of its
own, so that a loop of somebody's cannot take its dump before a kill away. One dump of a run at a time: two would write
into the same files. Called by `keeper` at every look, and by guards.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.keeper.runs import pending_requests
from pods.remote.dump import Dump, dump_run
from pods.remote.dumpfiles import newest
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.records import Ack, as_wire
from workloads.contract.rundir import RunDir

WATCHDOG = "watchdog"
PER_MINUTE = {True: 12, False: 6}  # by whether a watchdog asks
MINUTE_S = 60.0
ALONE_S = 8.0
NEWEST_FILES = 16
MAX_LOOKED_AT = 2000  # requests in one look; the others in the next ones


@dataclass
class Budget:
    """Dumps of one run: when the last ones began (monotonic seconds), and what the newest of them said."""

    began: dict[bool, deque[float]] = field(default_factory=lambda: {True: deque(), False: deque()})
    last: dict[str, Any] = field(default_factory=dict)

    def is_spent(self, now: float, *, watchdog: bool) -> bool:
        times = self.began[watchdog]
        while times and now - times[0] >= MINUTE_S:
            times.popleft()
        return len(times) >= PER_MINUTE[watchdog]


@dataclass
class Dumper:
    """All runs of a keeper. `care` is called from one thread."""

    say: Callable[[str], None]
    _dumping: set[str] = field(default_factory=set)  # run ids
    _budgets: dict[str, Budget] = field(default_factory=dict)

    def care(self, run: RunDir) -> None:
        """Begin the next dump of `run`, a watchdog's first, in a thread; answer at once what is too much."""
        waiting = [(path, try_read_json(path) or {}) for path in pending_requests(run, "dump")[:MAX_LOOKED_AT]]
        budget = self._budgets.setdefault(run.run_id, Budget())
        refused = 0
        for path, request in sorted(waiting, key=lambda item: not by_watchdog(item[1])):
            watchdog = by_watchdog(request)
            if budget.is_spent(time.monotonic(), watchdog=watchdog):
                refused += 1
                self._answer(run, path, _too_many(run, budget, watchdog=watchdog))
            elif run.run_id not in self._dumping and not RunDir.ack_of(path).exists():  # answered since it was listed
                budget.began[watchdog].append(time.monotonic())
                self._dumping.add(run.run_id)
                threading.Thread(target=self._dump, args=(run, path, request, budget), daemon=True).start()
        if refused:
            self.say(f"{run.run_id}: {refused} dump requests were refused: too many in a minute")

    def _dump(self, run: RunDir, path: Path, request: dict[str, Any], budget: Budget) -> None:
        try:
            ack = carry_out_dump(run, request)
            if ack.ok:
                budget.last = {k: ack.data[k] for k in ("summary", "groups")}
        except Exception as e:  # a dump must be answered, whatever went wrong
            ack = Ack(False, "keeper", time.time(), f"{type(e).__name__}: {e}")
        try:
            self._answer(run, path, ack)
        finally:
            self._dumping.discard(run.run_id)

    def _answer(self, run: RunDir, path: Path, ack: Ack) -> None:
        try:
            atomic_write_json(RunDir.ack_of(path), as_wire(ack), durable=ack.ok)
        except OSError as e:
            self.say(f"{run.run_id}: the dump could not be answered: {e}")


def carry_out_dump(run: RunDir, request: dict[str, Any]) -> Ack:
    """Dump the ranks that a request names (all by default) and say how it went.

    Data of the answer: `{summary, seconds, groups: [{ranks, where, text}], files, notes}`; names below stackdumps/.
    """
    args = request.get("args")
    ranks = args.get("ranks") if isinstance(args, dict) else None
    if ranks is not None and not (isinstance(ranks, list) and all(type(r) is int for r in ranks)):
        return Ack(False, "keeper", time.time(), "args.ranks is not a list of rank numbers")
    who, why = str(request.get("who", ""))[:80], str(request.get("why", ""))[:200]
    with _alone(run):
        found = dump_run(run, ranks=ranks, why=why, by=who, watchdog=by_watchdog(request))
    if not found.dumps:
        return Ack(False, "keeper", time.time(), "no living rank of this run is on this pod")
    return Ack(True, "keeper", time.time(), "", dump_data(found))


_locks: dict[str, threading.Lock] = {}


@contextlib.contextmanager
def _alone(run: RunDir) -> Iterator[None]:
    """One dump of a run after the other, a guard's too: their stacks go into the same files. A dump that does not end
    keeps no other waiting for ever."""
    lock = _locks.setdefault(str(run.path), threading.Lock())
    ours = lock.acquire(timeout=ALONE_S)
    try:
        yield
    finally:
        if ours:
            lock.release()


def dump_data(found: Dump) -> dict[str, Any]:
    """The data of an answer, as it is told over the wire and kept in the event `dump`."""
    return {
        "summary": found.summary,
        "seconds": round(found.seconds, 3),
        "groups": [{"ranks": list(g.ranks), "where": g.where, "text": g.text} for g in found.groups],
        "files": found.files,
        "notes": found.notes,
    }


def _too_many(run: RunDir, budget: Budget, *, watchdog: bool) -> Ack:
    """The answer to one request more: no new dump, but the newest there is."""
    files = newest(run, NEWEST_FILES)
    why = f"too many dumps: {PER_MINUTE[watchdog]} in the last {MINUTE_S:.0f} s; the newest files are " + (
        ", ".join(files[:4]) or "none"
    )
    return Ack(False, "keeper", time.time(), why, {**budget.last, "files": files, "notes": []})


def by_watchdog(request: dict[str, Any]) -> bool:
    return request.get("who") == WATCHDOG
