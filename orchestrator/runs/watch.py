"""What changed in a run between two looks, a line a change. Pure: views and events in, changes out.

A pod that cannot be asked is told as that and nothing else: what its copy says is old news. Looks that were far apart
(a laptop asleep) make no run silent. Called by `watchloop`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.runs.render import clock, duration, figure, one_line, progress
from orchestrator.runs.views import RunView
from orchestrator.runs.whyevents import event_line, told
from orchestrator.runs.whysick import away, episodes
from workloads.contract.records import Event
from workloads.contract.states import RankHealth, RunState

ALONE_S = 15.0  # a supervisor that was killed comes back in about 2 s
_ILL = frozenset({RankHealth.SILENT, RankHealth.DEAD})
_LOST = "pod {} cannot be reached; when last seen"


@dataclass(frozen=True)
class Glance:
    """What is remembered of a run from one look to the next."""

    run: str
    pod: str
    state: str
    attempt: int
    seq: int  # of the newest event that was told
    reachable: bool
    missing: bool = False
    alone: bool = False  # nobody looks after it
    ill: Mapping[int, str] = field(default_factory=dict)  # rank -> why, where no event tells it
    lost_at: float = 0.0  # Unix seconds of this machine, when its pod was last reached


@dataclass(frozen=True)
class Change:
    """One line. `kind`: first, state, health, health-clear, rank-exit, halt, dump, stop, guard, verdict, note, rank,
    unreachable, back, gone, alone, supervised, resume, keeper."""

    ts: float  # Unix seconds of this machine
    run: str
    pod: str
    kind: str
    text: str
    state: str = ""
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        return f"{clock(self.ts)}  {self.run}  {one_line(self.text)}"

    def as_json(self) -> dict[str, Any]:
        return {"v": 1, **self.__dict__, "data": dict(self.data)}


def glance(
    view: RunView, events: Sequence[Event], pod: str, here: float, before: Glance | None = None, *, rested: bool = False
) -> Glance:
    """`rested`: the looks were far apart, so that ages say nothing yet. `here`: Unix seconds of this machine."""
    sight = view.sight
    reachable = sight is None or sight.reachable is True
    seq = max((e.seq for e in events), default=-1)
    if not reachable and before is not None:
        return replace(before, reachable=False)
    alone = not rested and _is_alone(view)
    ill = {} if rested else _ill(view, events)
    return Glance(
        view.run.run_id, pod, view.state, view.attempt or 0, seq, reachable, sight is not None and sight.missing,
        alone, ill, here if reachable else (sight.seen if sight else here),
    )  # fmt: skip


def _is_alone(view: RunView) -> bool:
    started = view.status is not None and view.state not in (RunState.QUEUED,)
    return started and not view.ended and not view.supervised and _status_age(view) > ALONE_S


def _status_age(view: RunView) -> float:
    return view.now - view.status.ts if view.status else 0.0


def _ill(view: RunView, events: Sequence[Event]) -> dict[int, str]:
    """Ranks that are silent or dead by their own files, where no finding of the supervisor tells it."""
    if view.state != RunState.RUNNING or any(not e.cleared for e in episodes(events, view.attempt or 0)):
        return {}
    gone = {e.data.get("rank") for e in events if e.what == "rank-exit" and e.attempt == view.attempt}
    return {r.rank: r.verdict.why for r in view.ranks if r.health in _ILL and not r.ended and r.rank not in gone}


def changes(before: Glance | None, now: Glance, view: RunView, events: Sequence[Event], here: float) -> list[Change]:
    """What to tell, in order. `here`: Unix seconds of this machine."""
    tell = _Teller(now, view, here)
    if before is None:
        tell.add("first", _standing(view) if now.reachable else f"{_LOST.format(now.pod)}: {_standing(view)}")
        if now.reachable:
            tell.ills(events)
            tell.conditions(replace(now, alone=False, ill={}))
        return tell.found
    if not now.reachable:
        if before.reachable:
            rest = "" if view.ended else " (the run goes on there)"
            tell.add("unreachable", f"pod {now.pod} cannot be reached since {clock(before.lost_at)}{rest}")
        return tell.found
    if not before.reachable:
        tell.add("back", f"pod {now.pod} is reached again after {duration(here - before.lost_at)}: {_standing(view)}")
    if now.missing and not before.missing:
        tell.add("gone", f"its directory is gone from pod {now.pod}")
    states = False
    for event, line in told([e for e in events if e.seq > before.seq]):
        states = states or event.what == "state"
        tell.add(event.what, line, event.data)
    if not states and (now.state, now.attempt) != (before.state, before.attempt):
        tell.add("state", f"{before.state} -> {now.state}: {view.reason}")
    tell.conditions(before)
    return tell.found


@dataclass
class _Teller:
    now: Glance
    view: RunView
    here: float
    found: list[Change] = field(default_factory=list)

    def add(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        n, kept = self.now, {k: v for k, v in (data or {}).items() if k not in ("lines", "groups", "files")}
        step = self.view.figure("step")
        self.found.append(Change(self.here, n.run, n.pod, kind, one_line(text), n.state, step, kept))

    def ills(self, events: Sequence[Event]) -> None:
        """What is wrong since before the first look."""
        if not self.view.ended and (blind := away(events, self.view.attempt or 0)) is not None:
            self.add("note", blind.why, {"away": True})
        if self.view.state in (RunState.RUNNING, RunState.STARTING):
            for e in episodes(events, self.view.attempt or 0):
                if not e.cleared:
                    self.add("health", event_line(e.last), e.last.data)

    def conditions(self, before: Glance) -> None:
        """What no event tells: nobody looks after the run, or a rank is silent and no rule has said so."""
        if self.now.alone and not before.alone:
            age = duration(_status_age(self.view))
            self.add("alone", f"nobody has looked after it for {age}: its ranks go on, its keeper is woken")
        elif before.alone and not self.now.alone and not self.view.ended:
            self.add("supervised", "its supervisor is back")
        for rank, why in self.now.ill.items():
            if rank not in before.ill:
                self.add("rank", f"rank {rank}: {why}", {"rank": rank})


def _standing(view: RunView) -> str:
    """How a run stands, in one line."""
    step = view.figure("step")
    parts = [view.state]
    if step is not None:
        parts.append(f"step {progress(step, view.figure('steps'))}, loss {figure(view.figure('loss'))}")
    if view.reason and view.state not in (RunState.RUNNING, RunState.SUCCEEDED):
        parts.append(view.reason)
    return ", ".join(parts)
