"""What the supervisor saw at one moment: what `decide` decides on. Pure data.

`unknown` is a value of its own everywhere: what could not be seen is neither alive nor dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.health.facts import Act, Cleared
from orchestrator.supervisor.illness import Key, Mark
from orchestrator.supervisor.memory import Memory
from workloads.contract.haltfile import Halt
from workloads.contract.records import Ack, HaltClocks, RankRecord, RunVerdict


class RankPhase(StrEnum):
    ABSENT = "absent"  # no record, and nobody holds its lock
    SPAWNED = "spawned"  # a shim lives, there is no record yet
    ALIVE = "alive"
    CLOSING = "closing"  # it ended; its shim is not gone yet, or the record waits for the keeper
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RankSeen:
    rank: int
    pod: str
    phase: RankPhase
    record: RankRecord | None = None
    beat_ts: float | None = None  # newest beat of this attempt
    step: int | None = None  # newest step of this attempt
    mark: Mark = field(default_factory=Mark)
    said: str = ""  # the error with which a program of ours ended, in one line

    @property
    def finished(self) -> RankRecord | None:
        """Its record, once it says how the rank ended."""
        record = self.record
        if record is None or (record.ended is None and record.error is None):
            return None
        return record


class GangState(StrEnum):
    NONE = "none"
    PENDING = "pending"
    PLACED = "placed"  # resources are held; agents may be missing
    READY = "ready"  # placed, and every agent answers
    IMPOSSIBLE = "impossible"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class GangSeen:
    state: GangState
    reason: str = ""  # of pending and impossible: with figures
    behind: tuple[str, ...] = ()


@dataclass(frozen=True)
class RequestSeen:
    """An unanswered request; `problem` says why it cannot be one."""

    name: str
    verb: str
    who: str = ""
    why: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Limits:
    """What the job says about restarts."""

    kind: str
    restart_max: int
    backoff_s: tuple[float, ...]
    clocks: HaltClocks = field(default_factory=HaltClocks)


@dataclass(frozen=True)
class DumpSeen:
    """The request for the dump that is due."""

    asked: bool
    ack: Ack | None = None
    age_s: float = 0.0  # since this supervisor first saw that it is due


@dataclass(frozen=True)
class Line:
    """What a guard or a rank wrote in the run directory for us to tell; `upto`, in `data`: bytes of its file so far."""

    what: str
    why: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Care:
    """What the watchdog saw at this look of an attempt that lives."""

    news: tuple[Act | Cleared, ...] = ()
    adopted: frozenset[Key] = frozenset()  # open findings that another supervisor made and this one did not
    dump: DumpSeen | None = None
    due_s: float = 0.0  # since this supervisor first saw what is due
    lines: tuple[Line, ...] = ()
    blind: str = ""  # why the run directory cannot be used now: nobody could tell us that a rank is well
    anew: bool = False  # it could not be used until now


@dataclass(frozen=True)
class Seen:
    memory: Memory
    limits: Limits
    ranks: tuple[RankSeen, ...]  # of the newest attempt; empty before the first
    gang: GangSeen
    in_state_s: float  # monotonic seconds in this state; this and the next two are counted anew by a new supervisor
    over_s: float = 0.0  # since every rank was first seen over
    fallen_s: float = 0.0  # since the first bad end was seen
    halt: Halt | None = None
    now_s: float | None = None  # since this supervisor first saw that the halt is urgent; None: it is not
    requests: tuple[RequestSeen, ...] = ()
    busy: Mapping[str, str] | str | None = None  # device -> who holds it; text: it cannot be told; None: not looked
    strays: tuple[int, ...] | None = None  # living processes of this run; None: not looked
    best_step: int = -1  # newest step of any attempt
    spawn_age_s: float | None = None  # since this supervisor last asked for shims, or could not write their orders
    spawn_tries: int = 0
    stopping: bool = False  # stop.json of this attempt lies there
    verdict: RunVerdict | None = None  # what rank 0 of this attempt answered; looked at once every rank is quiet
    care: Care = Care()
