"""Rules about the process of a rank: gone without a record, stopped, stuck. Pure. Listed in `rules.RULES`."""

from __future__ import annotations

from orchestrator.health.facts import Finding, ProcessState
from orchestrator.health.gang import Gang, finding, secs, step_of
from orchestrator.health.limits import Setting
from orchestrator.health.track import RankTrack


def gone(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    age = _in_state(track, ProcessState.DEAD)
    if age is None or age < s.limit:
        return None
    why = (
        f"the process of rank {track.rank} has been gone for {secs(age)} and no record says how it ended "
        f"(limit {secs(s.limit)}); its last step is {step_of(track)}"
    )
    return finding(s, track, why, age, s.limit, age - s.limit, int(age >= s.act_limit))


def stopped(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    """One that a debugger holds is somebody's at work: told, and that is all."""
    traced = _in_state(track, ProcessState.TRACED)
    age = _in_state(track, ProcessState.STOPPED) if traced is None else traced
    if age is None or age < s.limit:
        return None
    how = (
        "state T: SIGSTOP or a debugger"
        if traced is None
        else "state t: by a debugger, for which no silence is counted"
    )
    why = (
        f"the process of rank {track.rank} has been stopped ({how}) for {secs(age)} "
        f"(limit {secs(s.limit)}), at step {step_of(track)}"
    )
    return finding(s, track, why, age, s.limit, age - s.limit, 1 if traced is None else -1)


def stuck(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    age = _in_state(track, ProcessState.STUCK)
    if age is None:
        return None
    age = min(age, track.seen_t - track.moved_at)  # in and out of the disk while it trains is no fault
    if age < s.limit:
        return None
    why = (
        f"the process of rank {track.rank} has been in uninterruptible sleep (state D: disk, network volume or driver) "
        f"for {secs(age)} without a step (limit {secs(s.limit)}), at step {step_of(track)}"
    )
    return finding(s, track, why, age, s.limit, age - s.limit, 1)


def _in_state(track: RankTrack, state: ProcessState) -> float | None:
    """Observed seconds in this state, None when it is in another or cannot be seen now."""
    return track.seen_t - track.state_at if track.process is state and not track.unseen else None
