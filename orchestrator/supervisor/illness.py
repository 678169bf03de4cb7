"""What the supervisor remembers of health, as a fold over its own events: what was found, is due, was done. Pure.

Part of `memory`. A finding becomes an event before anything is done about it, so a supervisor that was killed in
between goes on: the dump that is due has the name of the event that asked for it and is never asked for twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.health.facts import UNWRITABLE, Finding
from workloads.contract.health import SHARP, Rule, Rung
from workloads.contract.records import Event
from workloads.contract.rundir import utc_stamp

MAX_OPEN = 64
RECENT_S = 60.0
"""A dump this old serves what is due now as well: stacks of the same stall."""
WEIGHT = {Rung.KILL: 1, Rung.RESTART: 2, Rung.HALT: 3, Rung.GIVE_UP: 4}
"""When several are due: a halt keeps its checkpoint and beats a restart."""

Key = tuple[Rule, int | None, str | None, str]
"""An episode, as `Finding.key`."""


@dataclass(frozen=True)
class Mark:
    """How far a rank had come: phase, step and number of its newest beat of this attempt."""

    phase: str = ""
    step: int | None = None
    seq: int | None = None


@dataclass(frozen=True)
class Ill:
    """An open finding, and the sharpest rung that was taken for it."""

    rule: Rule
    rung: Rung
    why: str
    ts: float  # Unix seconds of the event that told it first
    rank: int | None = None
    pod: str | None = None
    tag: str = ""
    told: frozenset[Rung] = frozenset()
    mark: Mark | None = None
    dumped: bool = False  # a dump that was asked for since is told
    observed: bool = False  # said, not done

    @property
    def key(self) -> Key:
        return Finding(self.rule, "", self.rank, self.pod, tag=self.tag).key


@dataclass(frozen=True)
class DumpDue:
    """A dump that a finding asks for, until it is told. `name`: of its request."""

    name: str
    why: str
    ts: float


@dataclass(frozen=True)
class Illness:
    open: tuple[Ill, ...] = ()  # oldest first
    due: Ill | None = None  # something sharp is to be done
    ending: Ill | None = None  # the ranks of this attempt were told to end because of it
    dump: DumpDue | None = None
    dumped_ts: float | None = None  # Unix seconds of the newest dump of this attempt that went well
    lines_lost: bool = False  # the run directory took no line for a while in this attempt
    upto: dict[str, int] = field(default_factory=dict)  # bytes that were told of what others write: guard, trouble

    @property
    def newest(self) -> Ill | None:
        return self.open[-1] if self.open else None

    def find(self, key: Key) -> Ill | None:
        return next((ill for ill in self.open if ill.key == key), None)

    def fresh(self) -> Illness:
        """Another attempt, or none: its findings are its own."""
        return Illness(upto=self.upto)

    def apply(self, event: Event) -> Illness:
        """What is remembered after `event`; foreign ones change nothing."""
        match event.what:
            case "health":
                return self._found(event)
            case "health-clear":
                return self._cleared(event)
            case "dump":
                return self._dumped(event)
            case "stop":
                ending = _ill(event)
                return self if ending is None else replace(self, ending=ending, due=None)
            case "halt":
                return replace(self, due=None)
            case "guard":
                return self._read("guard", event.data.get("upto"))
            case "note" if "trouble" in event.data:
                return self._read("trouble", event.data.get("upto"))
        return self

    def _read(self, what: str, upto: object) -> Illness:
        return replace(self, upto={**self.upto, what: upto}) if type(upto) is int and upto >= 0 else self

    def _found(self, event: Event) -> Illness:
        ill = _ill(event)
        if ill is None:
            return self
        old = self.find(ill.key)
        if old is not None:
            ill = replace(ill, ts=old.ts, told=old.told | ill.told)
        lost = self.lines_lost or (ill.rule is Rule.DISK_LOW and ill.tag == UNWRITABLE)
        new = replace(self, open=(*(i for i in self.open if i.key != ill.key), ill)[-MAX_OPEN:], lines_lost=lost)
        if ill.observed or self.ending is not None:
            return new
        recent = self.dumped_ts is not None and 0 <= event.ts - self.dumped_ts <= RECENT_S
        if ill.rung in SHARP and recent:
            ill = replace(ill, dumped=True)
        elif ill.rung != Rung.NOTE and self.dump is None:
            name = f"{utc_stamp(_sane(event.ts))}-dump-a{event.attempt}e{event.seq}.json"
            new = replace(new, dump=DumpDue(name, ill.why, ill.ts))
        if ill.rung in SHARP and (self.due is None or WEIGHT[ill.rung] > WEIGHT[self.due.rung]):
            new = replace(new, due=ill)
        return new

    def _cleared(self, event: Event) -> Illness:
        key = _key(event.data)
        due = self.due if self.due is None or self.due.key != key else None
        return replace(self, open=tuple(i for i in self.open if i.key != key), due=due)

    def _dumped(self, event: Event) -> Illness:
        due = None if self.due is None else replace(self.due, dumped=True)
        good = event.data.get("ok") is not False
        return replace(self, dump=None, due=due, dumped_ts=event.ts if good else self.dumped_ts)


def _ill(event: Event) -> Ill | None:
    place = _place(event.data)
    try:
        rung = Rung(event.data.get("rung", ""))
    except (ValueError, TypeError):
        return None
    if place is None:
        return None
    rule, rank, pod, tag = place
    return Ill(
        rule=rule, rung=rung, why=event.why, ts=_sane(event.ts), rank=rank, pod=pod, tag=tag, told=frozenset({rung}),
        mark=_mark(event.data.get("at")), observed=event.data.get("suppressed") is True,
    )  # fmt: skip


def _key(data: Mapping[str, Any]) -> Key | None:
    place = _place(data)
    return None if place is None else Finding(place[0], "", place[1], place[2], tag=place[3]).key


def _place(data: Mapping[str, Any]) -> Key | None:
    """Rule, rank, pod and tag as they were told; None for a rule that nobody knows."""
    rank, pod, tag = data.get("rank"), data.get("pod"), data.get("tag")
    try:
        rule = Rule(data.get("rule", ""))
    except (ValueError, TypeError):
        return None
    return (
        rule,
        rank if type(rank) is int else None,
        pod if isinstance(pod, str) else None,
        tag if isinstance(tag, str) else "",
    )


def _mark(row: object) -> Mark | None:
    if not isinstance(row, dict):
        return None
    phase, step, seq = row.get("phase"), row.get("step"), row.get("seq")
    return Mark(
        phase if isinstance(phase, str) else "",
        step if type(step) is int else None,
        seq if type(seq) is int else None,
    )


def _sane(ts: float) -> float:
    """A time that can be written as a name: events may hold any number."""
    return ts if 0 <= ts < 1e11 else 0.0
