"""Where the time of a start went: an event a stage, with its seconds since the stage before.

Stages of an attempt: placed, agents, ranks started, first beat, first step. Told once each; a supervisor that took over
in the middle tells only what it saw begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.seen import GangSeen, GangState, RankSeen
from workloads.contract.states import RunState

ORDER = ("placed", "agents", "ranks started", "first beat", "first step")


@dataclass
class Stages:
    journal: Journal
    mono: Callable[[], float] = time.monotonic
    _since: float | None = None
    _open: list[str] = field(default_factory=list)
    _state: RunState | None = None

    def entered(self, state: RunState | None) -> None:
        """A start begins with `queued`, or with `starting` where the gang is still there."""
        if state == self._state:
            return
        before, self._state = self._state, state
        if state == RunState.QUEUED and before != RunState.PREPARING:
            self._since, self._open = self.mono(), list(ORDER)
        elif state == RunState.STARTING and before == RunState.RESUMING:
            self._since, self._open = self.mono(), list(ORDER[2:])

    def saw(self, memory: Memory, gang: GangSeen, ranks: Sequence[RankSeen]) -> None:
        """Tell every stage that was reached."""
        now = self.mono()
        if self._since is None or not self._open:
            return
        started = memory.state in (RunState.STARTING, RunState.RUNNING)
        reached = {
            "placed": gang.state in (GangState.PLACED, GangState.READY),
            "agents": gang.state == GangState.READY,
            "ranks started": started and all(r.record is not None for r in ranks),
            "first beat": started and any(r.beat_ts is not None for r in ranks),
            "first step": started and any(r.step is not None for r in ranks),
        }
        number = memory.attempt if started else memory.attempt + 1
        while self._open and reached[self._open[0]]:
            stage = self._open.pop(0)
            self.journal.event("stage", data={"stage": stage, "seconds": round(now - self._since, 3)}, attempt=number)
            self._since = now
