"""Whether `orch watch --auto-resume` has a run go on. Pure, but for `asked_by_person`, which reads names of files.

Resumed: a run that the watchdog halted, and one that failed because a rank was killed by a signal. Never: one that a
person halted or asked to halt, one that succeeded, refused or failed by its own error, one whose pod was not asked just
now. The budget lies in the run's own events, so that a watch that is started again does not begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.runs.views import RunView
from orchestrator.runs.whysick import OURS, WATCHDOG, text
from orchestrator.runs.whywork import last_step
from workloads.contract.records import Event
from workloads.contract.rundir import RunDir, utc_stamp, verb_of_request
from workloads.contract.states import RunState

WHO = "orch watch"
MAX_IN_A_ROW = 3
MAX_A_DAY = 10
WAIT_S = (5.0, 60.0, 300.0)
DAY_S = 86400.0


@dataclass(frozen=True)
class Plan:
    """`resume` now, or not; `why` is worth telling once when it is not empty. `wait_s`: look again then."""

    resume: bool
    why: str = ""
    wait_s: float = 0.0


NO = Plan(False)


def plan(view: RunView, events: Sequence[Event], *, person: bool, anomaly: bool) -> Plan:
    """`person`: somebody asked for a halt of this attempt. `anomaly`: a script left `.anomaly_type` beside `.HALT`."""
    if not view.over or view.status is None or view.state == RunState.SUCCEEDED:
        return NO
    reason = _worth(view, events, anomaly=anomaly)
    if not reason:
        return NO
    if person:
        return Plan(False, "not resumed: a person asked it to halt")
    ours = _ours(events)
    spent = _in_vain(view, events, ours)
    if spent >= MAX_IN_A_ROW:
        return Plan(False, f"not resumed: {spent} resumes brought no new step (limit {MAX_IN_A_ROW})")
    today = sum(1 for e in ours if view.now - e.ts < DAY_S)
    if today >= MAX_A_DAY:
        return Plan(False, f"not resumed: it was resumed {today} times in 24 h (limit {MAX_A_DAY})")
    left = WAIT_S[spent] - (view.now - view.status.since)
    if left > 0:
        return Plan(False, wait_s=left)
    return Plan(True, f"{reason} (resume {spent + 1} of {MAX_IN_A_ROW} without a new step)")


def _worth(view: RunView, events: Sequence[Event], *, anomaly: bool) -> str:
    """Why a resume may help; "" when it is not ours to decide."""
    attempt = view.attempt or 0
    if view.state == RunState.HALTED:
        return "it was halted by a watchdog" if by_watchdog(view, events, anomaly=anomaly) else ""
    fall = next((e for e in events if e.what == "rank-exit" and e.attempt == attempt), None)
    if view.state != RunState.FAILED or view.halt_asked or fall is None or text(fall, "cause") in OURS:
        return ""
    if type(fall.data.get("signal")) is int or text(fall, "cause") == "shim-lost":
        return fall.why
    return ""


def by_watchdog(view: RunView, events: Sequence[Event], *, anomaly: bool) -> bool:
    """A rule halted it, ours or that of a script which left `.anomaly_type` beside its `.HALT`."""
    halt = next((e for e in events if e.what == "halt" and e.attempt == (view.attempt or 0)), None)
    who = text(halt, "who") if halt is not None else ""
    return view.state == RunState.HALTED and (who == WATCHDOG or (who == "a file" and anomaly))


def _resumes(events: Sequence[Event]) -> list[Event]:
    """What somebody asked for, oldest first."""
    return [e for e in events if e.what == "state" and e.to == RunState.RESUMING and "request" in e.data]


def _ours(events: Sequence[Event]) -> list[Event]:
    return [e for e in _resumes(events) if text(e, "who").startswith(WHO)]


def _in_vain(view: RunView, events: Sequence[Event], ours: Sequence[Event]) -> int:
    """Our resumes, from the newest back, after which no step was gained; one by a person begins anew."""
    best, spent = last_step(view, events, ()), 0
    for resume in reversed(_resumes(events)):
        start = next((e for e in events if e.to == RunState.STARTING and e.seq > resume.seq), None)
        base = start.data.get("base_step") if start is not None else None
        if resume not in ours or (type(base) is int and best is not None and best > base):
            break
        spent += 1
        best = base if type(base) is int else best
    return spent


def asked_by_person(run: RunDir, events: Sequence[Event], attempt: int) -> bool:
    """Somebody asked for a halt since this attempt began: a request file that is no watchdog's, or the latched halt."""
    start = next((e.ts for e in reversed(events) if e.to == RunState.STARTING and e.attempt == attempt), 0.0)
    halts = (e for e in events if e.what == "halt" and e.attempt == attempt)
    if any("@" in str(e.data.get("who")) for e in halts):
        return True
    try:
        names = [p.name for p in run.requests.iterdir()]
    except OSError:
        return False
    asked = (n for n in names if verb_of_request(n) == "halt")
    return any(n.split("-", 1)[0] >= utc_stamp(start) for n in asked)
