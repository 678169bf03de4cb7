"""The watchdog of one run inside the supervisor: looks at health, asks for dumps, writes `.HALT`, tells it all.

Its rules are `orchestrator.health`, what is done about them is decided in `treat`; here are the files. Nothing in here
waits: a dump is asked for with a request that the pod's keeper answers, and looked for at every tick. Called by
`engine` alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.health.facts import Act, Cleared, PodFacts, RankFacts
from orchestrator.health.monitor import Monitor
from orchestrator.supervisor import attempt as files
from orchestrator.supervisor.actions import AskDump, End, Found, Healed, TellDump, TellLine, WatchdogHalt
from orchestrator.supervisor.blindness import Blindness
from orchestrator.supervisor.illness import Ill, Illness, Key
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.picture import WATCHED, last_lines
from orchestrator.supervisor.seen import Care, DumpSeen
from orchestrator.supervisor.spec import RunSpec
from orchestrator.supervisor.told import ack_of, dump_data, found_data, new_lines, place_of
from orchestrator.supervisor.treat import end_clocks
from workloads.contract.config.health import health_of
from workloads.contract.errors import escape
from workloads.contract.files import atomic_write, atomic_write_json
from workloads.contract.haltfile import anomaly_text
from workloads.contract.health import anomaly_of
from workloads.contract.records import Request, as_wire
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

log = logging.getLogger(__name__)

LIVING = WATCHED | {RunState.HALTING}
ANY_STEP_COMPILES = frozenset({"parity", "bench", "decode", "data"})
WHO = "watchdog"
ALONE_S = 2.0
Treatment = Found | Healed | AskDump | TellDump | WatchdogHalt | End | TellLine


def monitor_of(spec: RunSpec) -> Monitor:
    """The rules as the job has them; the table's own where run.json says nothing that can be understood."""
    try:
        health = health_of({"health": spec.health})
    except ValueError as e:
        log.warning("health of run.json cannot be read, the defaults hold: %s", e)
        health = health_of({})
    return Monitor(
        health, spec.world_size, beats_expected=spec.kind != "command", any_step_compiles=spec.kind in ANY_STEP_COMPILES
    )


@dataclass
class Watchdog:
    run: RunDir
    journal: Journal
    monitor: Monitor
    _upto: dict[str, int] = field(default_factory=dict)  # of this supervisor: also lines that say nothing
    _mine: set[Key] = field(default_factory=set)  # open findings that this supervisor made
    _due: tuple[Ill | None, float] = (None, 0.0)
    _dump: tuple[str, float] = ("", 0.0)
    _alone_since: float | None = None

    def __post_init__(self) -> None:
        self.blindness = Blindness(self.run, self.journal)

    def recode(self, spec: RunSpec) -> None:
        """The rules as a resume may have changed them."""
        new = monitor_of(spec)
        if new.spec != self.monitor.spec:
            new.attempt = self.monitor.attempt
            self.monitor = new

    def look(self, now: float, memory: Memory, ranks: Sequence[RankFacts], pods: Sequence[PodFacts]) -> Care:
        """`now`: monotonic seconds. Never raises OSError."""
        blind, anew = self.blindness.look(now)
        if memory.state not in LIVING:
            return Care(blind=blind)
        health = memory.health
        self._look_at_anomaly(now, memory)
        if anew:
            self.monitor.begin_again()
            self._mine.clear()
        lines, self._upto = ((), self._upto) if blind else new_lines(self.run, health.upto | self._upto)
        if memory.attempt != self.monitor.attempt:
            self._mine.clear()
        quiet = memory.fallen is not None or health.ending is not None or memory.halt is not None
        watched = memory.state in WATCHED and not quiet and not blind
        self.monitor.lines_lost = health.lines_lost
        news = self._news(now, ranks, pods, memory.attempt) if watched else ()
        return Care(
            news=news,
            adopted=frozenset(ill.key for ill in health.open) - self._mine,
            dump=self._dump_seen(health, now),
            due_s=self._due_s(health.due, now),
            lines=lines,
            blind=blind,
            anew=anew,
        )

    def _look_at_anomaly(self, now: float, memory: Memory) -> None:
        """`.anomaly_type` without `.HALT`: whoever writes both writes it first, so it is told when it stays alone."""
        text = escape(anomaly_text(self.run), 80)
        if not text or memory.halt is not None or memory.health.due is not None or self.run.halt.exists():
            self._alone_since = None
            return
        if self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since >= ALONE_S:
            why = f".anomaly_type says {text}; it stops nothing without .HALT"
            self.journal.once(f"anomaly:{memory.attempt}:{text}", why)

    def _news(
        self, now: float, ranks: Sequence[RankFacts], pods: Sequence[PodFacts], attempt: int
    ) -> tuple[Act | Cleared, ...]:
        try:
            news = tuple(self.monitor.look(now, ranks, pods, attempt))
        except Exception:  # a rule that fails must not take the supervisor's eyes for everything else
            log.exception("the rules of health failed")
            return ()
        for item in news:
            if isinstance(item, Act):
                self._mine.add(item.finding.key)
            else:
                self._mine.discard(item.finding.key)
        return news

    def _dump_seen(self, health: Illness, now: float) -> DumpSeen | None:
        due = health.dump
        if due is None:
            return None
        if self._dump[0] != due.name:
            self._dump = (due.name, now)
        path = self.run.requests / due.name
        asked = path.exists()
        return DumpSeen(asked, ack_of(path) if asked else None, now - self._dump[1])

    def _due_s(self, due: Ill | None, now: float) -> float:
        """Seconds since this supervisor first saw that something sharp is due."""
        known = self._due[0]
        if due is None or known is None or (known.key, known.rung) != (due.key, due.rung):
            self._due = (due, now)
        return now - self._due[1]

    def carry_out(self, action: Treatment, memory: Memory) -> None:
        """What is done is told first. May raise OSError: it is done again at the next look."""
        match action:
            case Found():
                self._event("health", action.act.finding.why, found_data(action))
            case Healed(ill, why, after_s):
                after = None if after_s is None else round(after_s, 1)
                self._event("health-clear", why, place_of(ill) | {"after_s": after})
            case AskDump(due):
                ask = Request(verb="dump", who=WHO, ts=due.ts, why=due.why)
                atomic_write_json(self.run.requests / due.name, as_wire(ask))
            case TellDump(due, ack):
                why, data = dump_data(due, ack)
                self._event("dump", why, data)
            case WatchdogHalt(ill):
                self._halt(ill)
            case End(ill):
                self._end(ill, memory.attempt)
            case TellLine(line):
                self._event(line.what, line.why, dict(line.data))

    def _event(self, what: str, why: str, data: Mapping[str, object]) -> None:
        self.journal.event(what, why, data={k: v for k, v in data.items() if v is not None})

    def _halt(self, ill: Ill) -> None:
        """`.anomaly_type` first: who reads `.HALT` looks for it. A halt that is there already is somebody's own."""
        if self.run.halt.exists():
            return
        atomic_write(self.run.anomaly_type, f"{anomaly_of(ill.rule)}\n".encode())
        files.write_halt(self.run, who=WHO, why=ill.why, now=False)

    def _end(self, ill: Ill, attempt: int) -> None:
        """Told, then ordered; the order alone is made up for by `rules.attempt`."""
        lines = None if ill.rank is None else last_lines(self.run, ill.rank)
        self._event("stop", ill.why, place_of(ill) | {"rung": ill.rung.value, "lines": lines})
        term_s, kill_s = end_clocks(ill)
        with contextlib.suppress(OSError):
            files.write_stop(self.run, attempt, why=ill.why, term_s=term_s, kill_s=kill_s)
