"""What work a stop cost, or would cost now: the steps behind the newest checkpoint that can be used. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.health import median_step_s
from orchestrator.runs.render import duration
from orchestrator.runs.views import RunView
from workloads.contract.beats import Beat
from workloads.contract.records import REWIND, Event, HaltAck
from workloads.contract.states import RunState


@dataclass(frozen=True)
class CheckpointSeen:
    """`checked`: how far it was looked at: bytes (every hash agrees), sizes, manifest (it lies elsewhere)."""

    step: int
    problem: str | None = None
    checked: str = "manifest"


@dataclass(frozen=True)
class Work:
    """`lost`: steps between the newest usable checkpoint and the last step; `at_risk`: that is no loss yet."""

    line: str
    last_step: int | None
    checkpoint: int | None
    steps: int | None
    seconds: float | None
    at_risk: bool
    refused: bool = False  # there are checkpoints, and none can be used: a resume would not be carried out

    def as_json(self) -> dict[str, Any]:
        return {
            "last_step": self.last_step, "checkpoint_step": self.checkpoint, "steps": self.steps,
            "seconds": None if self.seconds is None else round(self.seconds, 3), "at_risk": self.at_risk,
        }  # fmt: skip


_CHECKED = {
    "bytes": "verified: every hash agrees",
    "sizes": "its files have the sizes of its manifest; hashes are checked before it is loaded",
    "manifest": "by its manifest; its files are checked before they are loaded",
}


def work_of(
    view: RunView,
    events: Sequence[Event],
    checkpoints: Sequence[CheckpointSeen],
    acks: Sequence[HaltAck],
    beats: Sequence[Beat],
) -> Work | None:
    """None where no step was made, and of a run that has succeeded."""
    best = last_step(view, events, acks)
    last = best if view.ended else last_step(view, (), acks)
    if last is None or best is None or view.state == RunState.SUCCEEDED:
        return None
    good = next((c for c in checkpoints if c.problem is None), None)
    if not checkpoints and view.checkpoint is not None:
        good = CheckpointSeen(view.checkpoint)
    risk = not view.ended
    again = f"; steps up to {best} were made before and are made again" if best > last else ""
    step_s = next((s for r in view.ranks if (s := median_step_s(r.beats))), 0.0) or median_step_s(beats)
    if good is None and not checkpoints and view.info.get("kind") == "command":
        return Work(f"{_of_program(last, acks)}{again}", last, None, None, None, risk)
    if good is None:
        why = ("no checkpoint can be used" if checkpoints else "there is no checkpoint yet") + again
        seconds = last * step_s if step_s else None
        return Work(f"{_steps(last, step_s, risk)}: {why}", last, None, last, seconds, risk, bool(checkpoints))
    steps = max(last - good.step, 0)
    seconds = steps * step_s if step_s or not steps else None
    where = f"the newest usable checkpoint is of step {good.step} ({_CHECKED[good.checked]}){again}"
    line = f"{_steps(steps, step_s, risk)}: the last step was {last}, {where}" if steps else f"none: {where}"
    return Work(line, last, good.step, steps, seconds, risk)


def _of_program(last: int, acks: Sequence[HaltAck]) -> str:
    """What a program saves by itself is its own; what it named when it was halted is known."""
    named = next((a for a in acks if a.checkpoint is not None), None)
    if named is not None:
        return f"none: the program saved step {named.step} when it was halted"
    return f"{last} step{'' if last == 1 else 's'}, less what the program saved by itself: orch does not read that"


def _steps(steps: int, step_s: float, risk: bool) -> str:
    time = f", {duration(steps * step_s)} at {duration(step_s)} a step" if step_s else ""
    return f"{'a crash now would cost ' if risk else ''}{steps} step{'' if steps == 1 else 's'}{time}"


def last_step(view: RunView, events: Sequence[Event], acks: Sequence[HaltAck]) -> int | None:
    """The newest step that any rank is known to have made, in any attempt."""
    told: list[Any] = [view.figure("step"), *(b.get("step") for r in view.ranks for b in r.beats[-1:])]
    told += [a.step for a in acks]
    told += [e.data.get("base_step") for e in _since_rewind(events) if e.what == "state"]
    return max((s for s in told if type(s) is int and s >= 0), default=None)


def _since_rewind(events: Sequence[Event]) -> Sequence[Event]:
    """Without what was told of steps that a resume from an older checkpoint gave up: those are no loss."""
    told = [i for i, e in enumerate(events) if e.what == "note" and str(e.data.get("once")).startswith(REWIND)]
    started = (i for i, e in enumerate(events) if e.to == RunState.STARTING and told and i > told[-1])
    return events[next(started, len(events) - 1) + 1 :] if told else events


def halted_cleanly(view: RunView, acks: Sequence[HaltAck]) -> bool:
    """Every rank acknowledged the same step, with a checkpoint."""
    return (
        0 < view.world_size == len(acks)
        and len({a.step for a in acks}) == 1
        and all(a.checkpoint is not None for a in acks)
    )
