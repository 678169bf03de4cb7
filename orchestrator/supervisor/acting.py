"""Carrying out what was decided: files, events, answers, and what the gang is asked to do.

Every action is safe to be tried again: it may fail half done, or the supervisor may be killed in it, and the next look
decides anew. Called by `engine` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.supervisor import attempt as files
from orchestrator.supervisor import inbox, rewind
from orchestrator.supervisor.actions import (
    Action,
    Answer,
    AskDump,
    End,
    Fall,
    Found,
    Healed,
    KeepHalt,
    LatchHalt,
    Leave,
    Place,
    Prepare,
    Resume,
    Spawn,
    Start,
    Stop,
    Sweep,
    Tell,
    TellDump,
    TellLine,
    Transition,
    Verdict,
    WatchdogHalt,
    WriteHalt,
)
from orchestrator.supervisor.gangface import Gang
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.picture import exit_facts, failed_at, last_lines
from orchestrator.supervisor.rules import words_of
from orchestrator.supervisor.seen import RequestSeen, Seen
from orchestrator.supervisor.spec import RunSpec
from orchestrator.supervisor.watchdog import Watchdog
from workloads.contract.errors import IntegrityError, escape
from workloads.contract.jobchanges import together, words
from workloads.contract.records import PYTHON_GONE, REWIND
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

SWEEP_EVERY_S = 5.0
MAX_CHANGES_CHARS = 400


@dataclass
class Acting:
    """`picture` writes status.json as it is now."""

    base: RunSpec
    run: RunDir
    gang: Gang
    journal: Journal
    watchdog: Watchdog
    clock: Callable[[], float]
    picture: Callable[[Seen, float], None]
    spec: RunSpec = field(init=False)
    """`base` as the resumes so far want it"""
    spawned: float | None = None  # monotonic seconds
    spawn_tries: int = 0
    """how often shims were asked for in this attempt"""
    spawn_failed: bool = False
    """the last try to start ranks ended before all their shims were asked for"""
    told: Tell | None = None
    _swept: float = 0.0

    def __post_init__(self) -> None:
        self._recode()

    def carry_out(self, action: Action, seen: Seen, now: float) -> bool:
        """Carry out one action. True: the run is left."""
        match action:
            case Transition(to, why, data):
                where = failed_at(self.journal.memory) if to == RunState.FAILED else {}
                self.journal.event("state", why, to=to.value, data={**data, **where})
            case Tell():
                self.told = action
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
                self._resume(action, seen, now)
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
            case Found() | Healed() | AskDump() | TellDump() | WatchdogHalt() | End() | TellLine():
                self.watchdog.carry_out(action, self.journal.memory)
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
        if gone := self.spec.lost_python():
            self.journal.event("state", f"{PYTHON_GONE}: {gone}", to=RunState.FAILED.value, data={"python": gone})
            return
        devices, port = self.gang.devices(), self.gang.free_port()
        if not self._rewound(seen.memory):
            return
        data: dict[str, object] = {"base_step": seen.best_step, "restarts": seen.memory.restarts}
        if before := self.gang.gpu_used():
            data["gpu_used_mib"] = dict(before)
        self.journal.event("state", f"attempt {number}", to=RunState.STARTING.value, data=data, attempt=number)
        self.spawned, self.spawn_tries, self.spawn_failed = None, 0, False
        files.write_attempt(self.spec, self.run, attempt=number, port=port, devices=devices, now=self.clock())
        self._spawn(range(self.spec.world_size), now)

    def _rewound(self, memory: Memory) -> bool:
        """What a resume from an older checkpoint asks for, once nothing of an older attempt lives. False: it failed."""
        if not memory.rewind or memory.resume_from is None:
            return True
        try:
            newer = rewind.newer(self.run, memory.resume_from)
        except LookupError as e:
            self.journal.event("state", f"{e}; nothing was moved", to=RunState.FAILED.value)
            return False
        if newer:
            told = f"set aside, for the run goes on from {memory.resume_from}: {', '.join(p.name for p in newer)}"
            self.journal.once(f"{REWIND}{memory.resumed_by}", told, checkpoints=[p.name for p in newer])
        rewind.set_aside(self.run, newer, memory.attempt)
        return True

    def _spawn(self, ranks: Sequence[int], now: float) -> None:
        """A disk or a driver that refuses the orders is waited for: no shim was asked for, so that none can have failed
        to come up."""
        number = self.journal.memory.attempt
        self.spawned, self.spawn_failed = now, True
        if not files.orders_complete(self.spec, self.run, number):
            devices, port = self.gang.devices(), self.gang.free_port()
            files.write_attempt(self.spec, self.run, attempt=number, port=port, devices=devices, now=self.clock())
        self.spawn_tries += 1
        self.gang.spawn(files.orders_by_pod(self.spec, self.run, number, ranks))
        self.spawn_failed = False

    def _fall(self, rank: int, why: str, seen: Seen) -> None:
        record = next((r.finished for r in seen.ranks if r.rank == rank), None)
        data = {"rank": rank, "lines": last_lines(self.run, rank), **(exit_facts(record) if record else {})}
        self.journal.event("rank-exit", why, data=data)

    def _resume(self, action: Resume, seen: Seen, now: float) -> None:
        """Fresh beat, `.HALT` aside, new state, status, answer: after a kill in between, the request is found again."""
        request, memory = action.request, seen.memory
        if refusal := self._no_job(request):
            inbox.answer(self.run, request, False, refusal, {})
            return
        files.fresh_beat(self.base, self.run, memory.attempt)
        files.archive_halt(self.run, memory.attempt)
        for other in seen.requests:
            if other.verb == "halt":  # it came too late to stop anything and must not stop the resumed run
                inbox.answer(self.run, other, False, f"it had {memory.state} before", {"ranks": self._acks()})
        data: dict[str, object] = {"request": request.name, "who": request.who}
        data |= {
            k: request.args[k] for k in ("code", "tree", "argv", "allow", "checkpoint", "changes") if k in request.args
        }
        why = resumed_words(request)
        self.journal.event("state", why, to=RunState.RESUMING.value, data=data)
        self._recode()
        self.picture(seen, now)  # first: a keeper takes an ended run whose requests are answered for a quiet one
        inbox.answer(self.run, request, True, "resumed", {})

    def _no_job(self, request: RequestSeen) -> str:
        """Why the job that a resume asks for cannot be one; "" when it can, as far as this is seen here."""
        if "changes" not in request.args:
            return ""
        try:
            self.base.with_changes(together(self.journal.memory.changes, request.args["changes"]))
        except IntegrityError as e:
            return e.what
        return ""

    def _sweep(self, pids: Sequence[int], now: float) -> None:
        if now - self._swept < SWEEP_EVERY_S and self._swept:
            return
        self._swept = now
        self.journal.event("note", f"ending processes that were left: pid {', '.join(map(str, pids))}")
        self.gang.sweep(self.run.run_id)

    def _verdict(self, stayed: Sequence[int]) -> None:
        """Clean when no process lives and the memory of the devices is back."""
        held = list(self.gang.gpu_left(self.journal.memory.gpu_before))
        left = [", ".join(map(str, stayed))] * bool(stayed) + held
        data: dict[str, object] = {"stayed": list(stayed)} | ({"gpu": held} if held else {})
        self.journal.event("verdict", f"these stayed: {'; '.join(left)}" if left else "clean", data=data)

    def _acks(self) -> list[dict[str, object]]:
        return files.halt_acks(self.run, range(self.base.world_size), self.journal.memory.attempt)

    def _recode(self) -> None:
        self.spec = self.base.resumed(self.journal.memory)
        self.watchdog.recode(self.spec)
        self.gang.recode(self.spec)


def resumed_words(request: RequestSeen) -> str:
    """`resumed by ada@box from step_00000100 with train.lr 0.0003 -> 0.0001: it was too high`"""
    args = request.args
    place = f" from {args['checkpoint']}" if "checkpoint" in args else ""
    told = f" with {escape(', '.join(words(args['changes'])), MAX_CHANGES_CHARS)}" if args.get("changes") else ""
    return f"resumed by {request.who}{place}{told}" + (f": {request.why}" if request.why else "")
