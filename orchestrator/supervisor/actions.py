"""What may be done next: the words in which `decide` answers. Pure data.

Each is carried out whole, or tried again at the next look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.health.facts import Act
from orchestrator.supervisor.illness import DumpDue, Ill, Mark
from orchestrator.supervisor.seen import Line, RequestSeen
from workloads.contract.haltfile import Halt
from workloads.contract.records import Ack
from workloads.contract.states import RunState


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
class Found:
    """A rung of a finding: told before anything is done about it. `at`: how far its rank had come."""

    act: Act
    at: Mark | None


@dataclass(frozen=True)
class Healed:
    """An open finding is over, or has to be found anew."""

    ill: Ill
    why: str
    after_s: float | None = None


@dataclass(frozen=True)
class AskDump:
    due: DumpDue


@dataclass(frozen=True)
class TellDump:
    """The dump is there, or is not waited for any longer."""

    due: DumpDue
    ack: Ack | None


@dataclass(frozen=True)
class WatchdogHalt:
    ill: Ill


@dataclass(frozen=True)
class End:
    """End the ranks of this attempt because of this finding: told, then ordered."""

    ill: Ill


@dataclass(frozen=True)
class TellLine:
    line: Line


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
    | Stop | Found | Healed | AskDump | TellDump | WatchdogHalt | End | TellLine | Sweep | Verdict | Leave
)  # fmt: skip
