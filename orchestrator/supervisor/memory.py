"""What the supervisor remembers of a run, as a fold over `events.jsonl`. Pure.

The state machine lies on disk: a supervisor that is killed and started again folds the events and goes on where it
was. Only what a decision needs is remembered; the rest is observed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.supervisor.illness import Illness
from workloads.contract.allowed import BOUND_PARTS, is_allowed
from workloads.contract.jobchanges import Changes, are_changes, together
from workloads.contract.records import Event
from workloads.contract.states import ENDED, RunState

_IN_ATTEMPT = frozenset({RunState.STARTING, RunState.RUNNING, RunState.HALTING})
ILLNESS = frozenset({"health", "health-clear", "dump", "stop", "guard"})
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
    fallen_seq: int | None = None  # the event that tells it, with the last lines of its log
    resumed_by: str | None = None  # file name of the newest resume request that was accepted
    tree: str | None = None  # code of a resume, instead of run.json's
    argv: tuple[str, ...] | None = None
    allowed: tuple[str, ...] = ()  # config changes that the newest resume request lets its checkpoint have
    changes: Changes = field(default_factory=dict)  # what all resumes so far made of the job of run.json
    approved: tuple[str, ...] = ()  # of `allowed`, what the checkpoint has to differ in because of `changes`
    resume_from: str | None = None  # the checkpoint that it named
    rewind: bool = False  # newer ones are still to be set aside
    gpu_before: Mapping[str, float] = field(default_factory=dict)  # MiB on its devices when this attempt was started
    told: frozenset[str] = field(default_factory=frozenset)  # keys of notes that are made once
    health: Illness = field(default_factory=Illness)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def apply(self, event: Event) -> Memory:
        """The memory after `event`. Foreign or unknown events change nothing."""
        if event.what == "state":
            return self._enter(event)
        if event.what == "halt":
            return replace(self, halt=event.why or "asked", health=self.health.apply(event))
        if event.what in ILLNESS:
            return replace(self, health=self.health.apply(event))
        if event.what == "rank-exit":
            rank = event.data.get("rank")
            first = isinstance(rank, int) and self.fallen is None
            return replace(self, fallen=rank, fallen_seq=event.seq) if first else self
        if event.what == "note" and "trouble" in event.data:
            return replace(self, health=self.health.apply(event))
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
            health=self.health.fresh() if state not in (RunState.RUNNING, RunState.HALTING) else self.health,
        )
        if state == RunState.STARTING:
            base_step = _int(event.data, "base_step", self.base_step)
            new = replace(
                new, attempt=event.attempt, base_step=base_step, gpu_before=_figures(event.data, "gpu_used_mib")
            )
            return replace(new, fallen=None, fallen_seq=None, closed=False, rewind=False)
        if state == RunState.RESUMING:
            return new._resuming(event.data)
        return new

    def _resuming(self, data: dict[str, Any]) -> Memory:
        if "request" not in data:
            restarts = self.restarts + (1 if _int(data, "spent", 0) > 0 else 0)
            return replace(self, restarts=restarts, spent=_int(data, "spent", self.spent))
        tree, argv, named, allow = (data.get(k) for k in ("tree", "argv", "checkpoint", "allow"))
        allowed = tuple(str(a) for a in allow) if isinstance(allow, list) else ()
        changes = self.changes
        if are_changes(new := data.get("changes")):
            changes = together(changes, new)
        return replace(
            self,
            spent=0,
            halt=None,
            resumed_by=str(data["request"]),
            tree=tree if isinstance(tree, str) else self.tree,
            argv=tuple(str(a) for a in argv) if isinstance(argv, list) and argv else self.argv,
            allowed=allowed,
            changes=changes,
            approved=_approved((*self.approved, *allowed), changes),
            resume_from=named if isinstance(named, str) else None,
            rewind=isinstance(named, str),
        )


def _approved(allowed: tuple[str, ...], changes: Changes) -> tuple[str, ...]:
    """What was allowed of the fields that a resume changed: it need not be said again with the next one."""
    names = dict.fromkeys(".".join(key.split(".")[:2]) for key in changes if key.startswith(BOUND_PARTS))
    return tuple(name for name in names if is_allowed(name, allowed))


def _seconds(data: dict[str, Any], key: str) -> float:
    """A wait; 0 for what is none (NaN would be waited for without end)."""
    value = data.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value <= MAX_WAIT_S else 0.0


def _figures(data: dict[str, Any], key: str) -> dict[str, float]:
    row = data.get(key)
    rows = row.items() if isinstance(row, dict) else ()
    return {name: float(value) for name, value in rows if isinstance(value, int | float) and abs(value) < MAX_WAIT_S}


def _int(data: dict[str, Any], key: str, default: int) -> int:
    value = data.get(key)
    return value if type(value) is int else default
