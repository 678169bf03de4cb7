"""One run's care, one look at a time: observe, `decide`, carry out. No Ray in here; the gang is handed in.

Called by the supervisor actor twice a second (and by tests with a gang of plain processes). Nothing it remembers in
memory matters: killed at any point, the next engine folds the journal, looks at the files and goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.supervisor import attempt as files
from orchestrator.supervisor import inbox
from orchestrator.supervisor.acting import Acting
from orchestrator.supervisor.actions import (
    Action,
)
from orchestrator.supervisor.decide import decide
from orchestrator.supervisor.gangface import Gang
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.observe import Figures
from orchestrator.supervisor.outcome import is_bad
from orchestrator.supervisor.picture import WATCHED, picture, reason_of
from orchestrator.supervisor.rules import LEASE_RETRY_S
from orchestrator.supervisor.seen import GangSeen, GangState, Limits, RankPhase, Seen
from orchestrator.supervisor.spec import RunSpec
from orchestrator.supervisor.stages import Stages
from orchestrator.supervisor.watchdog import LIVING, Watchdog, monitor_of
from workloads.contract.errors import OrchError, escape
from workloads.contract.haltfile import Halt, HaltProblem, read_halt
from workloads.contract.process import ProcId
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

log = logging.getLogger(__name__)

VOID_S = 30.0
QUIET = frozenset({RankPhase.ENDED, RankPhase.ABSENT})
BEFORE_START = frozenset({RunState.QUEUED, RunState.PREPARING, RunState.RESUMING})


@dataclass
class Engine:
    base: RunSpec
    run: RunDir
    gang: Gang
    journal: Journal
    clock: Callable[[], float] = time.time
    _state: RunState | None = None
    _entered: float = 0.0
    _over_since: float | None = None
    _fallen_since: float | None = None
    _urgent_since: float | None = None
    _leases_at: float = 0.0
    _busy: Mapping[str, str] | str | None = None
    _figures: Figures = field(default_factory=Figures)
    _complaint: str = ""
    _pictured: bool = False
    _void_since: float | None = None

    def __post_init__(self) -> None:
        self._stages = Stages(self.journal)
        self._watchdog = Watchdog(self.run, self.journal, monitor_of(self.base))
        self._acting = Acting(
            self.base, self.run, self.gang, self.journal, self._watchdog, self.clock, self._write_status
        )
        self._me = ProcId.me()

    @property
    def starting(self) -> bool:
        """Something is about to happen: look again soon."""
        state, health = self.journal.memory.state, self.journal.memory.health
        waits = health.due is not None or health.dump is not None
        return waits or state != self._state or state in (RunState.PREPARING, RunState.STARTING)

    def tick(self, now: float) -> bool:
        """Look once and act. True when the run has ended and everything was given back. `now`: monotonic seconds."""
        if self._is_void(now):
            log.warning("the directory of this run was removed and nothing of it lives; leaving")
            self.gang.release()
            return True
        self.journal.flush()
        seen = self.look(now)
        left = False
        if not self._pictured:  # a predecessor may have died before it told what it had decided
            self._write_status(seen, now)
            self._pictured = True
        for action in decide(seen):
            try:
                left = self._acting.carry_out(action, seen, now)
            except (OSError, TimeoutError, LookupError, ValueError, RuntimeError, OrchError) as e:
                self._complain(action, e)
                break
        else:
            if not (self._acting.spawn_failed and seen.memory.state in WATCHED):  # the next try is seconds away
                self._complaint = ""
        self._write_status(seen, now)
        return left

    # looking

    def _is_void(self, now: float) -> bool:
        """The run directory was removed a while ago and nothing of the run lives: its place in Ray is given back. Where
        it comes back, the keeper finds it like any other; a whole volume that is away is waited for."""
        away = not os.path.lexists(self.run.path) and os.path.lexists(self.run.path.parent)
        if not away or self.gang.strays() != ():
            self._void_since = None
            return False
        self._void_since = now if self._void_since is None else self._void_since
        return now - self._void_since >= VOID_S

    def look(self, now: float) -> Seen:
        memory, spec = self.journal.memory, self._acting.spec
        if memory.state != self._state:
            self._state, self._entered, self._acting.told = memory.state, now, None
        self._stages.entered(memory.state)
        ranks, self._figures, best = self.gang.ranks(memory.attempt) if memory.attempt else ((), Figures(), -1)
        gang = GangSeen(GangState.NONE) if memory.ended or memory.state is None else self.gang.look(now)
        if not memory.ended:
            self._stages.saw(memory, gang, ranks)
        facts = self.gang.health(now) if memory.attempt and memory.state in LIVING else ((), ())
        care = self._watchdog.look(now, memory, *facts)
        quiet = all(r.phase in QUIET for r in ranks)
        self._over_since = (self._over_since or now) if quiet and ranks else None
        fallen = any(is_bad(r.finished) for r in ranks)
        self._fallen_since = (self._fallen_since or now) if fallen else None
        halt = self._halt()
        return Seen(
            memory=memory,
            limits=Limits(spec.kind, spec.restart_max, spec.backoff_s, spec.clocks),
            ranks=ranks,
            gang=gang,
            in_state_s=now - self._entered,
            over_s=now - self._over_since if self._over_since else 0.0,
            fallen_s=now - self._fallen_since if self._fallen_since else 0.0,
            halt=halt,
            now_s=self._now_s(halt, memory.state, now),
            requests=inbox.pending(self.run, self.clock()),
            busy=self._leases(memory.state, gang, now),
            strays=self.gang.strays() if quiet and not memory.ended and memory.state is not None else None,
            best_step=best,
            spawn_age_s=None if self._acting.spawned is None else now - self._acting.spawned,
            spawn_tries=self._acting.spawn_tries,
            stopping=bool(memory.attempt) and self.run.stop_order(memory.attempt).exists(),
            verdict=files.verdict_of(self.run, memory.attempt) if quiet and ranks else None,
            care=care,
        )

    def _halt(self) -> Halt | None:
        found = read_halt(self.run)
        if isinstance(found, HaltProblem):
            self.journal.once(f"halt-problem:{found.text}", found.text)
            return None
        return found

    def _now_s(self, halt: Halt | None, state: RunState | None, now: float) -> float | None:
        """Seconds since the halt was first seen to be urgent. A latch while the run halts, as it is in the shims."""
        if halt is not None and halt.now:
            self._urgent_since = now if self._urgent_since is None else self._urgent_since
        elif state != RunState.HALTING:
            self._urgent_since = None
        return None if self._urgent_since is None else now - self._urgent_since

    def _leases(self, state: RunState | None, gang: GangSeen, now: float) -> Mapping[str, str] | str | None:
        """Leases of our devices by others; looked at before a start, every 5 s while one is busy or cannot be told."""
        if gang.state != GangState.READY or state not in BEFORE_START:
            return None
        if not self._busy or now - self._leases_at >= LEASE_RETRY_S:
            self._busy, self._leases_at = self.gang.busy(), now
        return self._busy

    def _complain(self, action: Action, error: Exception) -> None:
        """Log a failed action once; it is tried again at the next look."""
        text = f"{type(action).__name__.lower()} failed: {escape(error, 400) or type(error).__name__}"
        if text != self._complaint:
            log.warning("%s", text, exc_info=error)
            self._complaint = text

    def _write_status(self, seen: Seen, now: float) -> None:
        memory = self.journal.memory
        if memory.state is None:
            return
        told = self._acting.told
        reason = told.reason if told and memory.state == seen.memory.state else reason_of(memory)
        if self._complaint and not memory.ended:
            reason = f"{reason}; {self._complaint}" if reason else self._complaint
        behind = told.behind if told and memory.state == RunState.QUEUED else ()
        status = picture(
            self._acting.spec,
            memory,
            seen.ranks,
            self._figures,
            reason=reason,
            behind=behind,
            ts=self.clock(),
            me=self._me,
        )
        self.journal.status(status, now)
