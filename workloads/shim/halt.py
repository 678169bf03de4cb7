"""What a rank is asked to do, and when it is made to: `.HALT`, stop orders, SIGTERM to the shim.

`clocks` is pure: (what was asked and when, limits, now) -> nothing, SIGTERM or SIGKILL. What `.HALT`
says is read by `workloads.contract.haltfile`; this module reads the stop order and the heartbeat. Used by `care` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from workloads.contract.beats import parse_beat
from workloads.contract.files import read_tail, try_read_json
from workloads.contract.haltfile import Halt
from workloads.contract.records import HaltClocks

TOLD_KILL_S = 10.0
"""SIGTERM to the shim itself: the rank gets SIGTERM at once, and SIGKILL this many seconds later."""
STOP_KILL_S = 10.0
MAX_CLOCK_S = 1e9  # neither NaN nor an int of 400 digits, which no float holds, is below it


class Send(IntEnum):
    NOTHING = 0
    TERM = 1
    KILL = 2


class Verdict(NamedTuple):
    send: Send
    cause: str = ""


@dataclass(frozen=True)
class Asked:
    """Monotonic seconds at which each request was first seen. A latch: nothing here ever goes back to None."""

    halt_at: float | None = None
    now_at: float | None = None
    stop_at: float | None = None
    stop_term_s: float = 0.0
    stop_kill_s: float = STOP_KILL_S
    told_at: float | None = None

    def halted(self, request: Halt, now: float) -> Asked:
        halt_at = now if self.halt_at is None else self.halt_at
        now_at = now if request.now and self.now_at is None else self.now_at
        return replace(self, halt_at=halt_at, now_at=now_at)

    def stopped(self, term_s: float, kill_s: float, now: float) -> Asked:
        return self if self.stop_at is not None else replace(
            self, stop_at=now, stop_term_s=term_s, stop_kill_s=kill_s
        )  # fmt: skip

    def told(self, now: float) -> Asked:
        return self if self.told_at is not None else replace(self, told_at=now)


def clocks(asked: Asked, limits: HaltClocks, *, has_beaten: bool, now: float) -> Verdict:
    """What is due at `now`, by the earliest clock that runs.

    A rank that never beat does not know `.HALT`: its SIGTERM is due at once, its SIGKILL on the usual clock.
    """
    wait = 1.0 if has_beaten else 0.0
    running: list[tuple[float, float, str, str]] = []  # SIGTERM due, SIGKILL due, causes
    if asked.halt_at is not None:
        running.append((asked.halt_at + wait * limits.term_s, asked.halt_at + limits.kill_s, "halt-term", "halt-kill"))
    if asked.now_at is not None:
        running.append(
            (asked.now_at + wait * limits.now_term_s, asked.now_at + limits.now_kill_s, "halt-term", "halt-kill")
        )
    if asked.stop_at is not None:
        running.append((asked.stop_at + asked.stop_term_s, asked.stop_at + asked.stop_kill_s, "stopped", "stopped"))
    if asked.told_at is not None:
        running.append((asked.told_at, asked.told_at + TOLD_KILL_S, "stopped", "stopped"))
    kills = [(kill, cause) for _, kill, _, cause in running if kill <= now]
    if kills:
        return Verdict(Send.KILL, min(kills)[1])
    terms = [(term, cause) for term, _, cause, _ in running if term <= now]
    return Verdict(Send.TERM, min(terms)[1]) if terms else Verdict(Send.NOTHING)


def look_at_stop(path: Path) -> tuple[float, float] | None:
    """(SIGTERM, SIGKILL) seconds of a stop order, or None. A bad number counts as the default."""
    row = try_read_json(path)
    return None if row is None else (_seconds(row.get("term_s"), 0.0), _seconds(row.get("kill_s"), STOP_KILL_S))


def _seconds(value: object, default: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_CLOCK_S
    return float(value) if good else default  # type: ignore[arg-type]


def has_beaten(heartbeat: Path, rank: int, attempt: int) -> bool:
    """True when the newest lines of this rank's heartbeat have one of this attempt."""
    try:
        lines = read_tail(heartbeat).split(b"\n")
    except OSError:
        return False
    beats = (parse_beat(line) for line in lines if line)
    return any(b is not None and b.rank == rank and b.attempt == attempt for b in beats)
