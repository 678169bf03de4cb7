"""What the supervisor remembers of a run, as a fold over `events.jsonl`. Pure.

The state machine lies on disk: a supervisor that is killed and started again folds the events and goes on where it
was. Only what a decision needs is remembered; the rest is observed anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from workloads.contract.records import Event
from workloads.contract.states import ENDED, RunState

_IN_ATTEMPT = frozenset({RunState.STARTING, RunState.RUNNING, RunState.HALTING})
MAX_WAIT_S = 1e9


@dataclass(frozen=True)
class Memory:
    state: RunState | None = None  # None: nothing was written yet
    attempt: int = 0
    since: float = 0.0  # Unix seconds of the last change of state
    reason: str = ""
    restarts: int = 0  # automatic ones, over the whole life
    spent: int = 0  # automatic ones since a new step was gained or an operator resumed
    base_step: int = -1  # newest step of any rank when this attempt was started
    backoff_s: float = 0.0  # to wait in `resuming`
    halt: str | None = None  # latched: who asked and why
    closed: bool = True  # the newest attempt is over, whatever of it can still be seen
    fallen: int | None = None  # the rank whose end brings this attempt down
    resumed_by: str | None = None  # file name of the newest resume request that was accepted
    tree: str | None = None  # code of a resume, instead of run.json's
    argv: tuple[str, ...] | None = None
    told: frozenset[str] = field(default_factory=frozenset)  # keys of notes that are made once

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def apply(self, event: Event) -> Memory:
        """The memory after `event`. Foreign or unknown events change nothing."""
        if event.what == "state":
            return self._enter(event)
        if event.what == "halt":
            return replace(self, halt=event.why or "asked")
        if event.what == "rank-exit":
            rank = event.data.get("rank")
            return replace(self, fallen=rank) if isinstance(rank, int) and self.fallen is None else self
        if event.what == "note" and isinstance(key := event.data.get("once"), str):
            return replace(self, told=self.told | {key})
        return self

    def _enter(self, event: Event) -> Memory:
        try:
            state = RunState(event.to or "")
        except ValueError:
            return self
        new = replace(
            self,
            state=state,
            since=event.ts,
            reason=event.why,
            backoff_s=_seconds(event.data, "backoff_s"),
            closed=self.closed if state in _IN_ATTEMPT else True,
        )
        if state == RunState.STARTING:
            base_step = _int(event.data, "base_step", self.base_step)
            return replace(new, attempt=event.attempt, base_step=base_step, fallen=None, closed=False)
        if state == RunState.RESUMING:
            return new._resuming(event.data)
        return new

    def _resuming(self, data: dict[str, Any]) -> Memory:
        if "request" not in data:
            restarts = self.restarts + (1 if _int(data, "spent", 0) > 0 else 0)
            return replace(self, restarts=restarts, spent=_int(data, "spent", self.spent))
        tree, argv = data.get("tree"), data.get("argv")
        return replace(
            self,
            spent=0,
            halt=None,
            resumed_by=str(data["request"]),
            tree=tree if isinstance(tree, str) else self.tree,
            argv=tuple(str(a) for a in argv) if isinstance(argv, list) and argv else self.argv,
        )


def _seconds(data: dict[str, Any], key: str) -> float:
    """A wait; 0 for what is none (NaN would be waited for without end)."""
    value = data.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value <= MAX_WAIT_S else 0.0


def _int(data: dict[str, Any], key: str, default: int) -> int:
    value = data.get(key)
    return value if type(value) is int else default
