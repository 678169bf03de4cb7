"""One run's care, one look at a time: observe, `decide`, carry out. No Ray in here; the gang is handed in.

Called by the supervisor actor twice a second (and by tests with a gang of plain processes). Nothing it remembers in
memory matters: killed at any point, the next engine folds the journal, looks at the files and goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.supervisor import attempt as files
from orchestrator.supervisor import inbox
from orchestrator.supervisor.decide import decide
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.observe import Figures
from orchestrator.supervisor.outcome import is_bad
from orchestrator.supervisor.picture import exit_facts, last_lines, picture
from orchestrator.supervisor.rules import LEASE_RETRY_S, words_of
from orchestrator.supervisor.seen import (
    Action,
    Answer,
    Fall,
    GangSeen,
    GangState,
    KeepHalt,
    LatchHalt,
    Leave,
    Limits,
    Place,
    Prepare,
    RankPhase,
    RankSeen,
    Resume,
    Seen,
    Spawn,
    Start,
    Stop,
    Sweep,
    Tell,
    Transition,
    Verdict,
    WriteHalt,
)
from orchestrator.supervisor.spec import RunSpec
from orchestrator.supervisor.stages import Stages
from workloads.contract.errors import OrchError, escape
from workloads.contract.haltfile import Halt, HaltProblem, read_halt
from workloads.contract.process import ProcId
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 5.0
QUIET = frozenset({RankPhase.ENDED, RankPhase.ABSENT})
BEFORE_START = frozenset({RunState.QUEUED, RunState.PREPARING, RunState.RESUMING})


class Gang(Protocol):
    """What places the ranks and reaches their pods. `look`, `ranks`, `strays`, `busy` never raise."""

    def look(self, now: float) -> GangSeen: ...
    def ranks(self, attempt: int) -> tuple[tuple[RankSeen, ...], Figures, int]: ...
    def strays(self) -> tuple[int, ...] | None: ...
    def busy(self) -> Mapping[str, str] | str: ...
    def place(self) -> None: ...
    def prepare(self) -> None: ...
    def devices(self) -> Mapping[str, Sequence[str]]: ...
    def free_port(self) -> int: ...
    def spawn(self, orders: Mapping[str, Sequence[str]]) -> None: ...
    def sweep(self, mark: str) -> None: ...
    def release(self) -> None: ...
    def recode(self, spec: RunSpec) -> None: ...


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
    _spawned: float | None = None
    _spawn_tries: int = 0
    _swept: float = 0.0
    _leases_at: float = 0.0
    _busy: Mapping[str, str] | str | None = None
    _told: Tell | None = None
    _figures: Figures = field(default_factory=Figures)
    _complaint: str = ""

    def __post_init__(self) -> None:
        self._stages = Stages(self.journal)
        self._me = ProcId.me()
        self._recode()

    @property
    def starting(self) -> bool:
        """Something is about to happen: look again soon."""
        state = self.journal.memory.state
        return state != self._state or state in (RunState.PREPARING, RunState.STARTING)

    def tick(self, now: float) -> bool:
        """Look once and act. True when the run has ended and everything was given back. `now`: monotonic seconds."""
        self.journal.flush()
        seen = self.look(now)
        left = False
        for action in decide(seen):
            try:
                left = self._act(action, seen, now)
            except (OSError, TimeoutError, LookupError, ValueError, RuntimeError, OrchError) as e:
                self._complain(action, e)
                break
        else:
            self._complaint = ""
        self._write_status(seen, now)
        return left

    # looking

    def look(self, now: float) -> Seen:
        memory = self.journal.memory
        if memory.state != self._state:
            self._state, self._entered, self._told = memory.state, now, None
        self._stages.entered(memory.state)
        ranks, self._figures, best = self.gang.ranks(memory.attempt) if memory.attempt else ((), Figures(), -1)
        gang = GangSeen(GangState.NONE) if memory.ended or memory.state is None else self.gang.look(now)
        if not memory.ended:
            self._stages.saw(memory, gang, ranks)
        quiet = all(r.phase in QUIET for r in ranks)
        self._over_since = (self._over_since or now) if quiet and ranks else None
        fallen = any(is_bad(r.finished) for r in ranks)
        self._fallen_since = (self._fallen_since or now) if fallen else None
        return Seen(
            memory=memory,
            limits=Limits(self.base.kind, self.base.restart_max, self.base.backoff_s),
            ranks=ranks,
            gang=gang,
            in_state_s=now - self._entered,
            over_s=now - self._over_since if self._over_since else 0.0,
            fallen_s=now - self._fallen_since if self._fallen_since else 0.0,
            halt=self._halt(),
            requests=inbox.pending(self.run, self.clock()),
            busy=self._leases(memory.state, gang, now),
            strays=self.gang.strays() if quiet and not memory.ended and memory.state is not None else None,
            best_step=best,
            spawn_age_s=None if self._spawned is None else now - self._spawned,
            spawn_tries=self._spawn_tries,
            stopping=bool(memory.attempt) and self.run.stop_order(memory.attempt).exists(),
            verdict=files.verdict_of(self.run, memory.attempt) if quiet and ranks else None,
        )

    def _halt(self) -> Halt | None:
        found = read_halt(self.run)
        if isinstance(found, HaltProblem):
            self.journal.once(f"halt-problem:{found.text}", found.text)
            return None
        return found

    def _leases(self, state: RunState | None, gang: GangSeen, now: float) -> Mapping[str, str] | str | None:
        """Leases of our devices by others; looked at before a start, every 5 s while one is busy or cannot be told."""
        if gang.state != GangState.READY or state not in BEFORE_START:
            return None
        if not self._busy or now - self._leases_at >= LEASE_RETRY_S:
            self._busy, self._leases_at = self.gang.busy(), now
        return self._busy

    # acting

    def _act(self, action: Action, seen: Seen, now: float) -> bool:
        """Carry out one action. True: the run is left."""
        match action:
            case Transition():
                self.journal.event("state", action.why, to=action.to.value, data=action.data)
            case Tell():
                self._told = action
            case LatchHalt(halt):
                data = {"who": halt.who, "now": halt.now, "ts": halt.ts}
                self.journal.event("halt", words_of(halt.who, halt.why), data=data)
            case WriteHalt(request):
                now_too = request.args.get("now") is True
                files.write_halt(self.run, who=request.who, why=request.why, now=now_too)
            case KeepHalt():
                files.write_halt(self.run, who="supervisor", why=seen.memory.halt or "", now=False)
            case Answer(request, ok, why):
                inbox.answer(self.run, request, ok, why, {"ranks": self._acks()} if request.verb == "halt" else {})
            case Resume():
                self._resume(action, seen)
            case Place():
                self.gang.place()
                if not seen.memory.closed:
                    self.journal.event("note", "Ray lost the gang; placing it again around the living ranks")
            case Prepare():
                self.gang.prepare()
            case Start(number):
                self._start(number, seen, now)
            case Spawn(ranks):
                self._spawn(ranks, now)
            case Fall(rank, why):
                self._fall(rank, why, seen)
            case Stop(why, term_s, kill_s):
                files.write_stop(self.run, seen.memory.attempt, why=why, term_s=term_s, kill_s=kill_s)
            case Sweep(pids):
                self._sweep(pids, now)
            case Verdict(stayed):
                self._verdict(stayed)
            case Leave():
                self.gang.release()
                return True
        return False

    def _start(self, number: int, seen: Seen, now: float) -> None:
        """Devices and port are asked for first: when that fails nothing has changed and the next look tries again."""
        devices, port = self.gang.devices(), self.gang.free_port()
        data = {"base_step": seen.best_step, "restarts": seen.memory.restarts}
        self.journal.event("state", f"attempt {number}", to=RunState.STARTING.value, data=data, attempt=number)
        self._spawned, self._spawn_tries = None, 0
        files.write_attempt(self.spec, self.run, attempt=number, port=port, devices=devices, now=self.clock())
        self._spawn(range(self.spec.world_size), now)

    def _spawn(self, ranks: Sequence[int], now: float) -> None:
        number = self.journal.memory.attempt
        self._spawned, self._spawn_tries = now, self._spawn_tries + 1
        if not files.orders_complete(self.spec, self.run, number):
            devices, port = self.gang.devices(), self.gang.free_port()
            files.write_attempt(self.spec, self.run, attempt=number, port=port, devices=devices, now=self.clock())
        self.gang.spawn(files.orders_by_pod(self.spec, self.run, number, ranks))

    def _fall(self, rank: int, why: str, seen: Seen) -> None:
        record = next((r.finished for r in seen.ranks if r.rank == rank), None)
        data = {"rank": rank, "lines": last_lines(self.run, rank), **(exit_facts(record) if record else {})}
        self.journal.event("rank-exit", why, data=data)

    def _resume(self, action: Resume, seen: Seen) -> None:
        """Fresh beat, `.HALT` aside, new state, answer: after a kill in between, the request is found again."""
        request, memory = action.request, seen.memory
        files.fresh_beat(self.base, self.run, memory.attempt)
        files.archive_halt(self.run, memory.attempt)
        for other in seen.requests:
            if other.verb == "halt":  # it came too late to stop anything and must not stop the resumed run
                inbox.answer(self.run, other, False, f"it had {memory.state} before", {"ranks": self._acks()})
        data: dict[str, object] = {"request": request.name, "who": request.who}
        data |= {k: request.args[k] for k in ("code", "tree", "argv") if k in request.args}
        why = f"resumed by {request.who}" + (f": {request.why}" if request.why else "")
        self.journal.event("state", why, to=RunState.RESUMING.value, data=data)
        self._recode()
        inbox.answer(self.run, request, True, "resumed", {})

    def _sweep(self, pids: Sequence[int], now: float) -> None:
        if now - self._swept < SWEEP_EVERY_S and self._swept:
            return
        self._swept = now
        self.journal.event("note", f"ending processes that were left: pid {', '.join(map(str, pids))}")
        self.gang.sweep(self.run.run_id)

    def _verdict(self, stayed: Sequence[int]) -> None:
        pids = ", ".join(map(str, stayed))
        self.journal.event("verdict", f"these stayed: {pids}" if stayed else "clean", data={"stayed": list(stayed)})

    def _acks(self) -> list[dict[str, object]]:
        return files.halt_acks(self.run, range(self.base.world_size), self.journal.memory.attempt)

    def _recode(self) -> None:
        self.spec = self.base.with_code(self.journal.memory.tree, self.journal.memory.argv)
        self.gang.recode(self.spec)

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
        reason = self._told.reason if self._told and memory.state == seen.memory.state else memory.reason
        if self._complaint and not memory.ended:
            reason = f"{reason}; {self._complaint}" if reason else self._complaint
        behind = self._told.behind if self._told and memory.state == RunState.QUEUED else ()
        status = picture(
            self.base, memory, seen.ranks, self._figures, reason=reason, behind=behind, ts=self.clock(), me=self._me
        )
        self.journal.status(status, now)
