"""Rules about what does not come: no beat, no step, a phase without end, a rank that the others leave behind. Pure.

Where it is not proved that a beat could have come (the run directory takes no line, nobody answers for the pod), a
finding stays at level 0: nothing is ended for it. Listed in `rules.RULES`.
"""

from __future__ import annotations

from orchestrator.health.facts import Finding
from orchestrator.health.gang import Gang, finding, secs, step_of
from orchestrator.health.limits import Setting
from orchestrator.health.track import RankTrack
from workloads.contract.healthtable import ACT_STEPS, PHASE_LIMITS_S, VERDICT_STEPS
from workloads.contract.states import Phase

FIRST_STEP_S = PHASE_LIMITS_S["compiling"]
"""Until a step time is known it may be that of a first step, which compiles."""
UNSURE_S = 2 * max(PHASE_LIMITS_S.values())
"""Until the next beat of a rank of which lines may have been missed (the directory took none, or this observer came
later than the rank): the phase that is known may be long over, and it may be silent in the slowest one. So too until
the next step of one whose pace this observer, which came later, has never read."""


def _level(age: float, act_limit: float, gang: Gang, track: RankTrack) -> tuple[int, str]:
    """The level of a silence, and what is to be said about it."""
    if track.unsure:
        act_limit = max(act_limit, UNSURE_S)
    if age < act_limit:
        return 0, ""
    if gang.provable(track):
        return 1, f"; the limit to act is {secs(act_limit)}"
    return 0, "; that its beats can be written and read is not proved, so nothing is ended for it"


def _level_at_pace(age: float, act_limit: float, gang: Gang, track: RankTrack) -> tuple[int, str]:
    """As `_level`, of what comes as often as the program steps. A program that is not ours may write a line an epoch,
    so that two of its steps have to be seen first."""
    if not gang.beats_expected and track.step_s is None:
        return 0, "; how long a step of this program takes is not known yet, so nothing is ended for it"
    return _level(age, act_limit, gang, track)


def no_beat(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    if track.beat_at is None or track.phase in (Phase.HALTING, Phase.DONE):
        return None
    age, step_s = track.age(track.beat_at), track.step_s or 0.0
    limit = max(s.limit, VERDICT_STEPS * step_s)
    if age < limit:
        return None
    act_limit = max(s.act_limit, ACT_STEPS * step_s, FIRST_STEP_S if gang.any_step_compiles else 0.0)
    training = track.phase is Phase.PROGRESS
    level, doubt = _level_at_pace(age, act_limit, gang, track) if training else (-1, "")
    if gang.busy:  # it may wait for the one that saves, in a call that holds its interpreter
        level, doubt = min(level, 0), ""
    why = f"rank {track.rank} has told nothing for {secs(age)} (limit {secs(limit)}), {_where(track)}{doubt}"
    return finding(s, track, why, age, limit, age - limit, level)


def no_step(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    if track.phase is not Phase.PROGRESS or track.step is None:
        return None
    age, step_s = track.age(track.step_at), track.step_s
    if step_s is None or gang.any_step_compiles:
        least = UNSURE_S if step_s is None and track.joined else FIRST_STEP_S
        limit, act_limit = s.act_limit, max(s.act_limit, least, ACT_STEPS * (step_s or 0.0))
        of = "no step time is known yet" if step_s is None else "any step of it may compile first"
    else:
        act_limit = max(s.act_limit, ACT_STEPS * step_s)
        # 180 s at the latest, but a step of two minutes is not late at three
        limit = min(max(s.limit, VERDICT_STEPS * step_s), max(s.act_limit, 2 * step_s))
        of = f"its median step is {step_s:.3g} s"
    if age < limit:
        return None
    level, doubt = _level_at_pace(age, act_limit, gang, track)
    told = "" if track.beat_at is None else f", its last beat came {secs(track.age(track.beat_at))} ago"
    why = (
        f"rank {track.rank} has made no step for {secs(age)} (limit {secs(limit)}: {of}); "
        f"its last step is {track.step}{told}{doubt}"
    )
    return finding(s, track, why, age, limit, age - limit, level)


def phase_over(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    limit = s.phases.get(track.phase.value)
    if limit is None or not (track.spoke or gang.beats_expected):
        return None
    age = track.age(track.phase_at)
    if age < limit:
        return None
    level, doubt = _level(age, limit * s.act_factor, gang, track)
    began = "" if track.spoke else " and has not told anything yet"
    why = f"rank {track.rank} has been {track.phase} for {secs(age)} (limit {secs(limit)}){began}{doubt}"
    return finding(s, track, why, age, limit, age - limit, level)


def behind(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    if track.target is None or track.step is None or track.phase is not Phase.PROGRESS:
        return None
    step, since = track.target
    limit = max(s.limit, VERDICT_STEPS * (track.step_s or 0.0))
    age = track.age(since)
    if age < limit:
        return None
    why = f"rank {track.rank} is at step {track.step}; others were at step {step} {secs(age)} ago (limit {secs(limit)})"
    return finding(s, track, why, age, limit, age - limit, 1)


def _where(track: RankTrack) -> str:
    return f"its last step is {step_of(track)}" if track.phase is Phase.PROGRESS else f"while {track.phase}"
