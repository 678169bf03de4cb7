"""Events as lines for a person: what happened and what orch did, without saying anything twice. Pure.

Called by `why` for a whole run and by `watch` for the events that are new.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.runs.render import duration, one_line
from orchestrator.runs.whysick import key_of, text
from workloads.contract.records import Event

TOLD = frozenset({"state", "rank-exit", "halt", "health", "health-clear", "dump", "stop", "guard", "verdict", "note"})


def happened(events: Sequence[Event]) -> tuple[tuple[float, str], ...]:
    """(Unix seconds, line) of every event that tells something."""
    return tuple((e.ts, line) for e, line in told(events))


def told(events: Sequence[Event]) -> list[tuple[Event, str]]:
    """Every event that tells something, and its line; rungs taken at once for one finding are one line."""
    lines: list[tuple[Event, str]] = []
    chosen, before = [e for e in events if e.what in TOLD], ""
    for i, e in enumerate(chosen):
        if e.what == "health" and i + 1 < len(chosen) and _same(e, chosen[i + 1]):
            continue  # its rung is told with the next one
        rungs = [e]
        while e.what == "health" and len(rungs) <= i and _same(chosen[i - len(rungs)], e):
            rungs.insert(0, chosen[i - len(rungs)])
        lines.append((e, event_line(e, before, rungs)))
        before = before if e.what == "verdict" else e.why
    return [(e, line) for e, line in lines if line]


def _same(a: Event, b: Event) -> bool:
    return a.what == b.what == "health" and a.why == b.why and key_of(a) == key_of(b)


def event_line(e: Event, before: str = "", rungs: Sequence[Event] = ()) -> str:
    """One event; "" for one that tells nothing of what happened. `before`: what was said just before, not repeated."""
    if e.what not in TOLD:
        return ""
    why = "" if before and e.why == before else e.why.removeprefix(f"{before}; ") if before else e.why
    match e.what:
        case "state":
            what = f"{e.frm} -> {e.to}" if e.frm and e.to else e.to or "state"
        case "health":
            what, why = f"{text(e, 'rule')} [{', '.join(map(_rung, rungs or [e]))}]", e.why
        case "health-clear":
            after = e.data.get("after_s")
            took = f" after {duration(after)}" if isinstance(after, int | float) else ""
            what, why = f"{text(e, 'rule')} is over{took}", "" if took else e.why
        case "note":
            what = ""
        case "stop":
            what = f"its ranks are ended [{text(e, 'rung')}]"
        case _:
            what = e.what
    return one_line(": ".join(filter(None, (what, why))))


def _rung(e: Event) -> str:
    return (text(e, "rung") or "note") + (" not done" if e.data.get("suppressed") else "")
