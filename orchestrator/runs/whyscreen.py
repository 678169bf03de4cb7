"""A story on one screen, and as the document of `orch why --json`. Pure; all text of ranks and pods made harmless."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from orchestrator.runs.render import clip, clock, harmless, moment, one_line
from orchestrator.runs.why import Story

EVENTS_SHOWN = 14
FIRST_SHOWN = 2
LOG_SHOWN = 10
DAY_S = 12 * 3600.0
LABEL = 11
WIDTH = 110


def screen(story: Story, now: float, width: int = 0) -> str:
    """`now`: Unix seconds by the run's clock, which says whether times need their day."""
    parts = [_head(story), _sick(story), _happened(story, now), _end(story)]
    lines = ["\n".join(clip(line, width) for line in part) for part in parts if part]
    return "\n\n".join(lines)


def _head(s: Story) -> list[str]:
    return [f"{s.run}  {s.state}", *_wrapped("", s.verdict)]


def _wrapped(label: str, text: str) -> list[str]:
    """A labelled paragraph; a line of it is one that a terminal shows."""
    lines = textwrap.wrap(text, WIDTH - LABEL - 3, break_on_hyphens=False) or [""]
    if not label:
        lines = textwrap.wrap(text, WIDTH - 2, break_on_hyphens=False) or [""]
        return [f"  {line}" for line in lines]
    return [f"  {label if i == 0 else '':<{LABEL}} {line}" for i, line in enumerate(lines)]


def _sick(s: Story) -> list[str]:
    if s.sick is None:
        return []
    lines = [f"  {'first sick':<{LABEL}} {s.sick.head}"]
    for text in s.sick.lines:
        lines += _wrapped(" ", text)
    if s.sick.stack:
        lines.append(f"  {'stack':<{LABEL}} {one_line(s.sick.stack_of)}")
        lines += [f"    | {line}" for line in _shown(s.sick.stack, len(s.sick.stack))]
    if s.sick.log:
        shown = _shown([line for line in s.sick.log if line.strip()], LOG_SHOWN)
        lines.append(f"  {'last lines':<{LABEL}} of its log")
        lines += [f"    | {line}" for line in shown]
    return lines


def _shown(lines: Sequence[str], count: int) -> list[str]:
    return [clip(harmless(line.replace("\n", " ").expandtabs(4)), WIDTH) for line in lines[-count:]] if count else []


def _happened(s: Story, now: float) -> list[str]:
    told = list(s.happened)
    if not told:
        return ["  what happened: no event is known"]
    far = now - told[0][0] > DAY_S
    rows = [f"  {moment(ts)[5:] if far else clock(ts)}  {text}" for ts, text in told]
    if len(rows) > EVENTS_SHOWN:
        kept = EVENTS_SHOWN - FIRST_SHOWN
        left = len(rows) - EVENTS_SHOWN
        rows = [*rows[:FIRST_SHOWN], f"  ... {left} more event{'' if left == 1 else 's'}", *rows[-kept:]]
    return [*(["  ... older events are not here"] if s.cut else []), *(clip(row, WIDTH + 10) for row in rows)]


def _end(s: Story) -> list[str]:
    lines = []
    if s.work is not None:
        lines += _wrapped("at risk" if s.work.at_risk else "work lost", s.work.line)
    for note in s.notes:
        lines += _wrapped("note", note)
    told = f"{s.command}   {s.what}" if s.command else f"nothing: {s.what}"
    if len(told) <= WIDTH:
        return [*lines, f"  {'type now':<{LABEL}} {told}"]
    return [*lines, f"  {'type now':<{LABEL}} {s.command}", *_wrapped(" ", s.what)]


def document(story: Story) -> dict[str, Any]:
    """Every key always present."""
    sick = None
    if story.sick is not None:
        x = story.sick
        sick = {
            "rank": x.rank, "pod": x.pod, "head": x.head, "lines": list(x.lines), "stack": list(x.stack),
            "stack_of": x.stack_of, "log": list(x.log),
        }  # fmt: skip
    return {
        "v": 1, "run": story.run, "state": story.state, "level": story.level.value, "verdict": story.verdict,
        "sick": sick, "events": [{"ts": ts, "text": text} for ts, text in story.happened], "events_cut": story.cut,
        "work": None if story.work is None else story.work.as_json(), "notes": list(story.notes),
        "next": {"command": story.command, "what": story.what},
    }  # fmt: skip
