"""What the supervisor saw at one moment, and what it may do about it: the vocabulary of `decide`. Pure data.

`unknown` is a value of its own everywhere: what could not be seen is neither alive nor dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.supervisor.memory import Memory
from workloads.contract.haltfile import Halt
from workloads.contract.records import RankRecord, RunVerdict
from workloads.contract.states import RunState


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
    requests: tuple[RequestSeen, ...] = ()
    busy: Mapping[str, str] | str | None = None  # device -> who holds it; text: it cannot be told; None: not looked
    strays: tuple[int, ...] | None = None  # living processes of this run; None: not looked
    best_step: int = -1  # newest step of any attempt
    spawn_age_s: float | None = None  # since this supervisor last asked for shims
    spawn_tries: int = 0
    stopping: bool = False  # stop.json of this attempt lies there
    verdict: RunVerdict | None = None  # what rank 0 of this attempt answered; looked at once every rank is quiet


# what may be done; each is carried out whole, or tried again at the next look


@dataclass(frozen=True)
class Transition:
    to: RunState
    why: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tell:
    """A better reason for the same state; no event."""

    reason: str
    behind: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatchHalt:
    halt: Halt


@dataclass(frozen=True)
class WriteHalt:
    """A halt was requested and `.HALT` is not there."""

    request: RequestSeen


@dataclass(frozen=True)
class KeepHalt:
    """`.HALT` was taken away while halting; a latched halt stands, and the shims may not have seen it yet."""


@dataclass(frozen=True)
class Answer:
    request: RequestSeen
    ok: bool
    why: str


@dataclass(frozen=True)
class Resume:
    request: RequestSeen


@dataclass(frozen=True)
class Place:
    pass


@dataclass(frozen=True)
class Prepare:
    pass


@dataclass(frozen=True)
class Start:
    """Begin attempt `attempt`: devices and port first, then `starting`, epoch, orders, shims."""

    attempt: int


@dataclass(frozen=True)
class Spawn:
    """Have the shims of this attempt started that are not there."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Fall:
    """The end of this rank brings the attempt down."""

    rank: int
    why: str


@dataclass(frozen=True)
class Stop:
    why: str
    term_s: float
    kill_s: float


@dataclass(frozen=True)
class Sweep:
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """After a halt: is anything left?"""

    stayed: tuple[int, ...]


@dataclass(frozen=True)
class Leave:
    """The run has ended: give everything back and go."""


Action = (
    Transition | Tell | LatchHalt | WriteHalt | KeepHalt | Answer | Resume | Place | Prepare | Start | Spawn | Fall
    | Stop | Sweep | Verdict | Leave
)  # fmt: skip
