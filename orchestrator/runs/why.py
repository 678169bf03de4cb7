"""What happened to a run, as a story of one screen: facts in, `Story` out. Pure: no files, no clocks, no pod is asked.

`orchestrator.runs.whyfacts` gathers the facts, `whyscreen` prints the story. A pod that was not asked makes no run
dead: the story then says what the copy knows and how old that is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.runs.health import median_step_s
from orchestrator.runs.render import ago, brief, clock, duration, one_line, progress
from orchestrator.runs.views import FORGOTTEN, UNKNOWN, RunView
from orchestrator.runs.whyevents import happened
from orchestrator.runs.whyfigures import Evidence, end_of, figures, first_bad
from orchestrator.runs.whynext import next_of
from orchestrator.runs.whysick import Suspect
from orchestrator.runs.whywork import CheckpointSeen, Work, halted_cleanly, work_of
from workloads.contract.records import Event, HaltAck
from workloads.contract.states import RunState


class Level(StrEnum):
    """How it stands, in one word for scripts."""

    WELL = "well"
    WAITING = "waiting"
    SICK = "sick"
    HALTED = "halted"
    FAILED = "failed"
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Facts:
    view: RunView
    events: tuple[Event, ...]  # oldest first
    suspect: Suspect | None = None
    before: Suspect | None = None  # why the attempt before this one ended
    evidence: Evidence = field(default_factory=Evidence)
    checkpoints: tuple[CheckpointSeen, ...] = ()  # newest first
    acks: tuple[HaltAck, ...] = ()
    cut: bool = False  # events older than the first one exist


@dataclass(frozen=True)
class Sick:
    """The first sick rank or pod, in lines."""

    head: str
    lines: tuple[str, ...]
    stack: tuple[str, ...]
    stack_of: str
    log: tuple[str, ...]
    rank: int | None
    pod: str | None


@dataclass(frozen=True)
class Story:
    run: str
    state: str
    level: Level
    verdict: str
    sick: Sick | None
    happened: tuple[tuple[float, str], ...]  # (Unix seconds by the run's own clock, what)
    work: Work | None
    command: str  # "" when there is nothing to type
    what: str
    cut: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)


def tell(f: Facts) -> Story:
    level, verdict = _verdict(f)
    work = work_of(f.view, f.events, f.checkpoints, f.acks, f.evidence.beats)
    command, what = next_of(f.view, f.suspect, level.value, f.events, work)
    return Story(
        run=f.view.run.run_id, state=f.view.state, level=level, verdict=one_line(verdict, 600), sick=_sick(f, level),
        happened=happened(f.events), work=work,
        command=command, what=what, cut=f.cut, notes=_notes(f),
    )  # fmt: skip


def _verdict(f: Facts) -> tuple[Level, str]:
    v = f.view
    sight = v.sight
    if v.state == UNKNOWN:
        return Level.UNKNOWN, f"nothing is known of it yet: {sight.words if sight else 'it was never seen'}"
    if sight is not None and sight.missing:
        return Level.UNKNOWN, f"its directory is gone from pod {sight.pod}; what is told here is a copy: {_stood(v)}"
    if sight is not None and sight.reachable is False:
        return Level.UNKNOWN, _lost(v)
    level, told = _told(f)
    if sight is not None and sight.reachable is None:
        return level, f"by the copy of {clock(sight.seen)}, {ago(sight.age_s)} (the pod was not asked): {told}"
    return level, told


def _lost(v: RunView) -> str:
    assert v.sight is not None
    since = ago(v.sight.age_s)
    if v.sight.trouble == FORGOTTEN:
        return f"pod {v.sight.pod} is not in the inventory, so it was not asked; {since} it was {_stood(v)}"
    trouble = "cannot be reached" if v.sight.trouble == "unreachable" else "refuses to be asked"
    end = "" if v.ended else "; nothing says that it stopped, and it needs nobody here to go on"
    return f"pod {v.sight.pod} {trouble}; when it was last seen, {since}, it was {_stood(v)}{end}"


def _stood(v: RunView) -> str:
    step = v.figure("step")
    at = f" at step {progress(step, v.figure('steps'))}" if step is not None else ""
    return f"{v.state}{at}" + (f" ({v.reason})" if v.ended and v.reason else "")


def _told(f: Facts) -> tuple[Level, str]:
    v = f.view
    match v.state:
        case RunState.SUCCEEDED:
            return Level.DONE, f"it has succeeded at step {_step(v)}" + (f": {v.reason}" if v.reason else "")
        case RunState.FAILED:
            return Level.FAILED, f"it has failed: {v.reason or 'no reason was recorded'}"
        case RunState.HALTED:
            return Level.HALTED, _halted(f)
        case RunState.QUEUED:
            behind = f"; it waits for {', '.join(v.status.behind)}" if v.status and v.status.behind else ""
            return Level.WAITING, f"it has not started: {v.reason or 'queued'}{behind}"
        case RunState.RUNNING | RunState.STARTING:
            return _running(f)
    alone = "" if v.supervised else f"; nobody has looked after it for {_alone(v)}"
    level = Level.WAITING if v.supervised else Level.SICK
    return level, f"it is {v.state}: {v.reason or 'no reason was told'}{alone}"


def _halted(f: Facts) -> str:
    v = f.view
    saved = "" if not halted_cleanly(v, f.acks) else f"; every rank stopped at step {f.acks[0].step} with a checkpoint"
    return (v.reason or "it was halted") + saved


def _running(f: Facts) -> tuple[Level, str]:
    v, s = f.view, f.suspect
    if s is not None:
        alone = "" if v.supervised else f"; and nobody has looked after the run for {_alone(v)}"
        odd = f"; {s.note}" if s.note else ""
        return Level.SICK, f"it is {v.state} and sick: {s.why}{odd}{alone}"
    if not v.supervised:
        return Level.SICK, f"its ranks go on ({_pulse(f)}), but nobody has looked after it for {_alone(v)}"
    if v.state == RunState.STARTING:
        return Level.WAITING, f"it is starting: {v.reason or 'the ranks come up'}"
    if f.before is not None:
        return Level.WELL, f"nothing is wrong now: {_pulse(f)}; {_again(v, f.before)}"
    return Level.WELL, f"nothing is wrong: {_pulse(f)}"


def _again(v: RunView, before: Suspect) -> str:
    """It was not always well."""
    restarts = v.status.restarts if v.status else 0
    if not restarts:
        which = "the attempt before" if before.attempt == (v.attempt or 0) - 1 else f"attempt {before.attempt}"
        return f"{which} ended: {before.why}"
    times = "once, because" if restarts == 1 else f"{restarts} times, the last time because"
    return f"it was restarted {times} {before.why}"


def _pulse(f: Facts) -> str:
    v = f.view
    parts = [f"step {_step(v)}"] if v.figure("step") is not None else ["no step so far"]
    step_s = next((s for r in v.ranks if (s := median_step_s(r.beats))), 0.0)
    if step_s:
        parts.append(f"{duration(step_s)} a step")
    age = v.last_beat_age_s
    parts.append(f"last beat {ago(age)}" if age is not None else "its ranks write no heartbeats")
    return ", ".join(parts)


def _step(v: RunView) -> str:
    return progress(v.figure("step"), v.figure("steps"))


def _alone(v: RunView) -> str:
    return brief(v.now - v.status.ts) if v.status else "an unknown time"


def _sick(f: Facts, level: Level) -> Sick | None:
    s = f.suspect
    if s is None or level in (Level.DONE, Level.WELL):
        return None
    whom = f"rank {s.rank}" if s.rank is not None else f"pod {s.pod}" if s.pod else "the run"
    pod = s.pod or next((r.pod for r in f.view.ranks if r.rank == s.rank), None)
    where = f" on pod {pod}" if s.rank is not None and pod else ""
    head = f"{whom}{where}, attempt {s.attempt}"
    lines = [
        s.why,
        *([s.note] if s.note else []),
        *first_bad(f.evidence),
        *figures(f.evidence, f.view.now + (f.view.stale_s or 0.0)),
        *end_of(f.evidence),
    ]
    e = f.evidence
    dead = s.exit is not None or (e.record is not None and e.record.ended is not None)
    return Sick(head, tuple(map(one_line, lines)), e.stack, e.stack_of, e.log if dead else (), s.rank, pod)


def _notes(f: Facts) -> tuple[str, ...]:
    notes = [f"checkpoint step {c.step} will not be used: {c.problem}" for c in f.checkpoints if c.problem]
    if f.view.halt_asked and not f.view.ended:
        notes.append("a halt was asked for")
    clashing = [e for e in f.events if e.what == "verdict" and e.data.get("stayed")]
    notes += [one_line(f"after the halt {e.why}") for e in clashing[-1:]]
    return tuple(notes)
