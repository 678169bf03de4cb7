"""How a rank is doing, by the limits of the contracts (section Watchdog defaults). Pure: time is handed in.

A rank that cannot be looked at is `unknown`, never `dead`; `dead` is proved by its record, its process identity or the
boot id. Nothing is stored and nothing is done about it here: the supervisor acts, this tells a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from workloads.contract.beats import Beat
from workloads.contract.exitcodes import RankExit
from workloads.contract.records import RankRecord
from workloads.contract.states import Phase, RankHealth

STALL_S = 180.0
EARLY_S = 30.0
PHASE_LIMITS_S = {
    Phase.STARTING: 300.0,
    Phase.LOADING: 600.0,
    Phase.COMPILING: 1200.0,
    Phase.EVALUATING: 1200.0,
    Phase.CHECKPOINTING: 600.0,
}
GOOD_EXITS = frozenset({RankExit.DONE, RankExit.CHECKPOINTED})


@dataclass(frozen=True)
class Verdict:
    health: RankHealth
    why: str


def judge(
    record: RankRecord | None, alive: bool | None, beats: Sequence[Beat], now: float, *, frozen: bool = False
) -> Verdict:
    """Health of one rank at Unix time `now`.

    `alive`: whether the very process of `record` lives; None when this machine cannot tell. `frozen`: it is in state T
    (SIGSTOP, a debugger). `beats`: the newest ones of this attempt, oldest first.
    """
    if record is None:
        return Verdict(RankHealth.UNKNOWN, "not started yet")
    if record.ended is not None or record.pid is None:
        return _ended(record)
    if alive is False:
        return Verdict(RankHealth.DEAD, f"process {record.pid} is gone; its exit is not recorded yet")
    if frozen:
        return Verdict(RankHealth.STOPPED, f"state T, stopped by a signal: kill -CONT {record.pid}")
    if not beats:
        return _beatless(record, alive, now)
    return _by_beats(beats, now)


def _ended(record: RankRecord) -> Verdict:
    how = outcome(record)
    good = record.exit_code in GOOD_EXITS or record.cause == "stopped"
    return Verdict(RankHealth.STOPPED if good else RankHealth.DEAD, how)


def outcome(record: RankRecord) -> str:
    """How an ended rank ended, in words."""
    if record.signal is not None:
        return f"killed by signal {record.signal}" + (" (out of memory)" if record.oom else "")
    if record.exit_code is not None:
        return f"exit {record.exit_code}"
    return record.error or record.cause or "never started"


def _beatless(record: RankRecord, alive: bool | None, now: float) -> Verdict:
    age, limit = now - record.ts, PHASE_LIMITS_S[Phase.STARTING]
    if alive is None:
        return Verdict(RankHealth.UNKNOWN, "no heartbeat, and its process cannot be seen from here")
    if age <= limit:
        return Verdict(RankHealth.LIVE, "its process lives; no heartbeat yet")
    return Verdict(RankHealth.UNKNOWN, "its process lives, but it writes no heartbeats")


def _by_beats(beats: Sequence[Beat], now: float) -> Verdict:
    last = beats[-1]
    age = now - last.ts
    slow_s, silent_s = limits_s(beats)
    if age > silent_s:
        return Verdict(RankHealth.SILENT, f"no heartbeat for {age:.0f} s (limit {silent_s:.0f} s)")
    since = now - _since(beats)
    if last.msg == Phase.PROGRESS:
        if since > silent_s:
            return Verdict(RankHealth.SILENT, f"no new step for {since:.0f} s (limit {silent_s:.0f} s)")
        if since > slow_s:
            return Verdict(RankHealth.SLOW, f"no new step for {since:.0f} s (limit {slow_s:.0f} s)")
    limit = PHASE_LIMITS_S.get(last.msg)
    if limit is not None and since > limit:
        return Verdict(RankHealth.SLOW, f"{last.msg} for {since:.0f} s (limit {limit:.0f} s)")
    return Verdict(RankHealth.LIVE, str(last.msg))


def limits_s(beats: Sequence[Beat]) -> tuple[float, float]:
    """(slow, silent) in seconds without a new step: max(30, 5 medians) and max(180, 20 medians) of the run's steps."""
    step_s = median_step_s(beats)
    silent = max(STALL_S, 20 * step_s)
    return min(max(EARLY_S, 5 * step_s), silent), silent


def median_step_s(beats: Sequence[Beat]) -> float:
    """Median seconds a step, from `step_time_s` or else from the beats' own times; 0 when there are too few."""
    told = [float(b.get("step_time_s")) for b in beats if _positive(b.get("step_time_s"))]
    if told:
        return _median(told)
    steps = [(b.ts, b.get("step")) for b in beats if b.msg == Phase.PROGRESS and b.get("step") is not None]
    pairs = pairwise(steps)
    gaps = [(t1 - t0) / (s1 - s0) for (t0, s0), (t1, s1) in pairs if s1 > s0 and t1 > t0]
    return _median(gaps) if gaps else 0.0


def _median(values: Sequence[float]) -> float:
    """The upper median. `statistics` would cost every command 10 ms of imports."""
    return sorted(values)[len(values) // 2]


def _positive(value: float | None) -> bool:
    return value is not None and 0 < value < float("inf")


def _since(beats: Sequence[Beat]) -> float:
    """Unix time of the beat with which the present step, or the present phase, began."""
    last = beats[-1]
    start = last.ts
    for beat in reversed(beats):
        if beat.msg != last.msg or (last.msg == Phase.PROGRESS and beat.get("step") != last.get("step")):
            break
        start = beat.ts
    return start
