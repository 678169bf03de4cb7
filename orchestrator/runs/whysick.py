"""What was sick first: out of a run's events and ranks, the one rank (or pod) to look at. Pure.

An end that came from outside (a signal, out of memory, an exit of the program's own) names its rank. Where orch ended
the ranks itself, the finding that it acted upon does; of a stall that all ranks show, the odd one of the dump. Called
by `why` and by what gathers its facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.health.facts import Finding
from orchestrator.runs.views import RankView, RunView
from workloads.contract.health import SHARP, Rule, Rung
from workloads.contract.records import Event
from workloads.contract.states import RankHealth, RunState

OURS = frozenset({"halt-term", "halt-kill", "stopped"})
STALLS = frozenset({Rule.NO_BEAT, Rule.NO_STEP, Rule.PHASE_OVER, Rule.BEHIND})
GUARD_BEFORE_S = 60.0
WATCHDOG = "watchdog"
_ILL = (RankHealth.DEAD, RankHealth.SILENT, RankHealth.STOPPED, RankHealth.SLOW)
BEFORE_START = frozenset({RunState.QUEUED, RunState.PREPARING})
_HELD = re.compile(r"\bstate [TD]\b")
"""In where a rank is, by a dump: it, or a process of its own, cannot go on."""
_WAITS = re.compile(r"(in )?(all_|reduce|broadcast|barrier|backward|gather|scatter|synchronize|send|recv|wait)", re.I)
"""Where a rank waits for the others."""


@dataclass(frozen=True)
class Suspect:
    """`rank` None: a pod, or the run as a whole. `exit`: the fields of the event that told how it ended."""

    why: str
    attempt: int
    ts: float | None = None
    rank: int | None = None
    pod: str | None = None
    rule: str | None = None
    exit: Mapping[str, Any] | None = None
    note: str = ""  # how it was found, where that is not plain
    suppressed: bool = False  # nothing is done about it: its rule observes, or no budget is left


@dataclass
class Episode:
    """A rule of one rank or pod, from crossed to clear."""

    rule: str
    rank: int | None
    pod: str | None
    first: Event
    last: Event
    rungs: list[str] = field(default_factory=list)
    suppressed: bool = False
    cleared: bool = False

    @property
    def sharp(self) -> bool:
        """Something was ended because of it."""
        return not self.suppressed and any(r in SHARP for r in self.rungs)


def episodes(events: Sequence[Event], attempt: int) -> list[Episode]:
    """What was crossed in this attempt, in order; the newest episode of a rule, rank and pod last."""
    found: list[Episode] = []
    for e in events:
        if e.attempt != attempt or e.what not in ("health", "health-clear"):
            continue
        key = key_of(e)
        old = next((x for x in reversed(found) if key_of(x.first) == key and not x.cleared), None)
        if e.what == "health-clear":
            if old is not None:
                old.cleared, old.last = True, e
            continue
        if old is None:
            old = Episode(text(e, "rule"), whole(e, "rank"), text(e, "pod") or None, e, e)
            found.append(old)
        old.last, old.suppressed, old.rank = e, bool(e.data.get("suppressed")), whole(e, "rank")
        old.rungs.append(text(e, "rung") or Rung.NOTE.value)
    return found


def key_of(e: Event) -> tuple[object, ...]:
    """Which episode an event is of; findings of the gang are one, whichever rank leads."""
    rule, rank, pod, tag = text(e, "rule"), whole(e, "rank"), text(e, "pod") or None, text(e, "tag")
    try:
        return Finding(Rule(rule), "", rank, pod, tag=tag).key
    except ValueError:
        return rule, rank, pod, tag


def suspect_of(view: RunView, events: Sequence[Event]) -> Suspect | None:
    """The first that was sick in the newest attempt; of a run that goes on well after a restart, in the one before."""
    attempt = view.attempt or 0
    if attempt == 0:
        return None
    found = _of_attempt(view, events, attempt)
    if found is None and view.state in (RunState.RESUMING, RunState.QUEUED, RunState.PREPARING):
        return None
    return found


def last_fall(events: Sequence[Event], before: int) -> Suspect | None:
    """Why the attempt before `before` ended, where orch restarted it."""
    old = [e for e in events if e.attempt < before and e.what in ("rank-exit", "health")]
    return _ended(events, max(e.attempt for e in old)) if old else None


def _of_attempt(view: RunView, events: Sequence[Event], attempt: int) -> Suspect | None:
    if view.state in (RunState.FAILED, RunState.HALTED, RunState.RESUMING, RunState.HALTING):
        return _ended(events, attempt) or (_ill_rank(view) if view.state != RunState.HALTED else None)
    if view.state in (RunState.RUNNING, RunState.STARTING):
        found = away(events, attempt) or _open(events, attempt) or _ended(events, attempt)
        return found or _ill_rank(view)
    return None


def _ended(events: Sequence[Event], attempt: int) -> Suspect | None:
    """What brought an attempt down."""
    fall = next((e for e in events if e.attempt == attempt and e.what == "rank-exit"), None)
    stop = next((e for e in events if e.attempt == attempt and e.what == "stop"), None)
    known = episodes(events, attempt)
    acted = next((x for x in known if x.sharp), None)
    if stop is not None:
        acted = next((x for x in known if key_of(x.first) == key_of(stop)), acted)
    if fall is not None and (acted is None or text(fall, "cause") not in OURS):
        return _of_exit(fall, events)
    if acted is not None:
        return _of_episode(acted, events)
    if stop is not None:
        return Suspect(stop.why, attempt, stop.ts, whole(stop, "rank"), text(stop, "pod") or None, text(stop, "rule"))
    halt = next((e for e in reversed(events) if e.attempt == attempt and e.what == "halt"), None)
    if halt is not None and text(halt, "who") == WATCHDOG:
        last = next((x for x in episodes(events, attempt) if not x.cleared), None)
        return _of_episode(last, events) if last else _of_guard(events, attempt)
    return None


def _of_guard(events: Sequence[Event], attempt: int) -> Suspect | None:
    """What the memory guard halted a run for: it has told it before anybody else looked."""
    e = next((e for e in events if e.attempt == attempt and e.what == "guard" and whole(e, "rank") is not None), None)
    if e is None:
        return None
    return Suspect(e.why, attempt, e.ts, whole(e, "rank"), text(e, "pod") or None, text(e, "rule") or None)


def _of_exit(fall: Event, events: Sequence[Event]) -> Suspect:
    rank = whole(fall, "rank")
    found = Suspect(fall.why, fall.attempt, fall.ts, rank, text(fall, "pod") or None, exit=fall.data)
    for e in events:
        guarded = e.what == "guard" and e.attempt == fall.attempt and 0 <= fall.ts - e.ts <= GUARD_BEFORE_S
        if guarded and whole(e, "rank") in (None, rank):
            return replace(found, why=e.why or fall.why, ts=e.ts, rule=text(e, "rule") or None, note=fall.why)
    return found


def away(events: Sequence[Event], attempt: int) -> Suspect | None:
    """The run directory is full, read-only or not there: nothing else can be known, and the rules rest."""
    told = next((e for e in reversed(events) if e.what == "note" and type(e.data.get("away")) is bool), None)
    if told is None or not told.data["away"]:
        return None
    return Suspect(told.why, attempt, told.ts, rule=Rule.DISK_LOW)


def _open(events: Sequence[Event], attempt: int) -> Suspect | None:
    """The oldest finding that holds now; those that may end something go before the others."""
    now = [x for x in episodes(events, attempt) if not x.cleared]
    worst = min(now, key=lambda x: (not _grave(x), x.first.ts), default=None)
    return None if worst is None else _of_episode(worst, events)


def _grave(x: Episode) -> bool:
    return x.sharp or x.rule in STALLS or any(r != Rung.NOTE for r in x.rungs)


def _of_episode(x: Episode, events: Sequence[Event]) -> Suspect:
    found = Suspect(x.last.why, x.last.attempt, x.first.ts, x.rank, x.pod, x.rule, suppressed=x.suppressed)
    if x.rule not in STALLS:
        return found
    for held in episodes(events, x.last.attempt):  # a stopped rank makes all of them wait
        if held.rule in (Rule.STOPPED, Rule.STUCK) and held.rank is not None and not held.cleared:
            return replace(found, why=held.last.why, rank=held.rank, pod=held.pod, rule=held.rule, note=x.last.why)
    dump = dump_of(events, x.last.attempt, x.first.ts)
    odd = _odd_one(dump)
    if odd is None:
        return found
    where = next((w for ranks, w in groups_of(dump) if odd in ranks), "").removeprefix("in ")
    return replace(found, rank=odd, note=f"rank {odd} is the odd one of the dump" + (f", in {where}" if where else ""))


def dump_of(events: Sequence[Event], attempt: int, since: float | None = None) -> Event | None:
    """The newest dump of an attempt, made at Unix time `since` or later."""
    found = (e for e in reversed(events) if e.what == "dump" and e.attempt == attempt)
    return next((e for e in found if since is None or e.ts >= since - 1.0), None)


def groups_of(dump: Event | None) -> list[tuple[list[int], str]]:
    """(ranks, where they are) of a dump event, the odd ones first."""
    told = dump.data.get("groups") if dump is not None else None
    found = []
    for group in told if isinstance(told, list) else ():
        ranks = group.get("ranks") if isinstance(group, dict) else None
        if isinstance(ranks, list) and ranks and all(type(k) is int for k in ranks):
            found.append((ranks, str(group.get("where") or "")))
    return found


def _odd_one(dump: Event | None) -> int | None:
    """The rank to look at: of those that cannot go on, else of the fewest, else the one that waits for nobody."""
    groups = groups_of(dump)
    held = [ranks for ranks, where in groups if _HELD.search(where)]
    sizes = [len(ranks) for ranks, _ in groups]
    if 0 < len(held) < len(groups):
        return min(held, key=len)[0]
    if len(groups) > 1 and min(sizes) < max(sizes):
        return groups[sizes.index(min(sizes))][0][0]
    alone = [ranks for ranks, where in groups if where and not _WAITS.match(where)]
    return alone[0][0] if len(alone) == 1 < len(groups) else None


def _ill_rank(view: RunView) -> Suspect | None:
    """By beats and processes alone: for a run whose supervisor tells nothing."""
    ill = [r for r in view.ranks if _is_ill(r)]
    if not ill:
        return None
    worst = min(ill, key=lambda r: (_ILL.index(r.health), _since(r), r.rank))
    exit_facts = None
    if worst.record is not None and worst.record.ended is not None:
        names = ("exit_code", "signal", "cause", "max_rss_mib")
        told = {k: getattr(worst.record, k) for k in names}
        exit_facts = {k: v for k, v in told.items() if v is not None}
    why = f"rank {worst.rank}: {worst.verdict.why}"
    return Suspect(why, view.attempt or 0, _since(worst) or None, worst.rank, worst.pod, exit=exit_facts)


def _is_ill(rank: RankView) -> bool:
    if rank.ended and rank.health is RankHealth.STOPPED:
        return False  # it ended well, or orch ended it
    return rank.health in _ILL


def _since(rank: RankView) -> float:
    if rank.record is not None and rank.record.ended is not None:
        return rank.record.ended
    return rank.beats[-1].ts if rank.beats else 0.0


def text(event: Event, key: str) -> str:
    value = event.data.get(key)
    return value if isinstance(value, str) else ""


def whole(event: Event, key: str) -> int | None:
    value = event.data.get(key)
    return value if type(value) is int and 0 <= value < 1 << 31 else None
