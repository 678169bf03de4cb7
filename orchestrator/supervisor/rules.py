"""What `decide` needs of an attempt that has been started: ranks come up, run, die, halt, end. Pure.

Restarts count while no new step is gained: the first restart after a gain is number 1 again. So a run that keeps making
progress is restarted for ever, and one that dies at the same step again and again stops after `restart.max` tries.
"""

from __future__ import annotations

from orchestrator.supervisor.actions import (
    Action,
    Fall,
    KeepHalt,
    Place,
    Prepare,
    Spawn,
    Stop,
    Sweep,
    Transition,
    Verdict,
)
from orchestrator.supervisor.outcome import Ended, Outcome, fall_words, first_bad, first_fallen, is_bad, judge, sentence
from orchestrator.supervisor.seen import GangState, RankPhase, RankSeen, Seen
from orchestrator.supervisor.treat import end_clocks, sharp
from workloads.contract.exitcodes import RankExit
from workloads.contract.states import RunState

RESPAWN_S = 10.0
SPAWN_TRIES = 6
ABSENT_IS_OVER_S = 20.0  # a shim that was asked for and is still starting would be seen by then
PEERS_GRACE_S = 30.0  # peers of a rank that exited 75 are at the same checkpoint
STRAYS_LIMIT_S = 60.0
LEASE_RETRY_S = 5.0
NAMING_S = 3.0  # a keeper finishes the record of a lost shim within about a second
RESTART_CLOCKS = (0.0, 5.0)
HALT_PEER_CLOCKS = (0.0, 30.0)
SHIM_LATE_S = 10.0  # after the SIGKILL that a shim should have sent: it hangs, and the keeper sweeps in its place
STAYED_S = 75.0  # contracts: the verdict comes within 90 s of the last kill


def halt_words(s: Seen) -> str | None:
    """Who asked for a halt and why, latched or seen just now."""
    if s.memory.halt is not None:
        return s.memory.halt
    return None if s.halt is None else words_of(s.halt.who, s.halt.why)


def words_of(who: str, why: str) -> str:
    return f"halted by {who}" + (f": {why}" if why else "")


def over(s: Seen, rank: RankSeen) -> bool:
    if rank.phase == RankPhase.ENDED:
        return True
    memory = s.memory
    ended = memory.fallen is not None or memory.health.ending is not None
    given_up = memory.closed or ended or halt_words(s) is not None
    quiet = s.spawn_age_s is None or s.spawn_age_s >= ABSENT_IS_OVER_S
    return rank.phase == RankPhase.ABSENT and given_up and quiet and s.in_state_s >= ABSENT_IS_OVER_S


def attempt(s: Seen) -> list[Action]:
    """`starting` and `running`."""
    actions = gang_upkeep(s)
    halt = halt_words(s)
    if all_over(s):
        return actions + _tell_fall(s, halt) + _finish(s, halt)
    if halt:
        return [*actions, Transition(RunState.HALTING, halt)]
    if (ending := s.memory.health.ending) is not None:  # told by an event; the order may not be there yet
        return actions if s.stopping else [*actions, Stop(ending.why, *end_clocks(ending))]
    if fallen := _bad(s):
        return actions + _bring_down(s, fallen)
    if s.memory.fallen is not None:
        return actions  # it was seen, and its record cannot be read just now
    actions += [*_spawn_missing(s), *sharp(s)]
    if s.memory.state == RunState.STARTING and _runs(s):
        actions.append(Transition(RunState.RUNNING, "the first step was made" if _stepped(s) else "every rank started"))
    return actions


def gang_upkeep(s: Seen) -> list[Action]:
    """A gang that was lost with Ray is made again around the living ranks; they need not know."""
    if s.gang.state == GangState.NONE:
        return [Place()]
    return [Prepare()] if s.gang.state == GangState.PLACED else []


def _runs(s: Seen) -> bool:
    if s.limits.kind == "command":
        return all(r.record is not None and r.record.pid is not None for r in s.ranks)
    return _stepped(s)


def _stepped(s: Seen) -> bool:
    return any(r.step is not None for r in s.ranks)


def _bad(s: Seen) -> RankSeen | None:
    return first_bad(s.ranks) if any(is_bad(r.finished) for r in s.ranks) else None


def _tell_fall(s: Seen, halt: str | None) -> list[Action]:
    """Everything ended between two looks: the rank that did it is named all the same."""
    fallen = _bad(s) if halt is None else first_fallen(s.ranks)
    if fallen is None or s.memory.fallen is not None or s.memory.health.ending is not None:
        return []
    return [Fall(fallen.rank, fall_words(s.ranks, fallen))]


def _bring_down(s: Seen, fallen: RankSeen) -> list[Action]:
    """One rank ended badly: its peers are of no use any more. They must be gone before anything else happens."""
    why = sentence(fallen)
    known = s.memory.fallen is not None
    unrecorded = any(r.phase == RankPhase.CLOSING and r.finished is None for r in s.ranks)
    if not known and unrecorded and s.fallen_s < NAMING_S:
        return []  # another has died too and its record is still to come: it may be the cause, and this one its echo
    actions: list[Action] = [] if known else [Fall(fallen.rank, fall_words(s.ranks, fallen))]
    record = fallen.finished
    patient = record is not None and record.exit_code == RankExit.CHECKPOINTED and s.fallen_s < PEERS_GRACE_S
    if patient and all(r.finished is None or r.finished.exit_code == RankExit.CHECKPOINTED for r in s.ranks):
        return actions
    if not s.stopping:
        actions.append(Stop(why, *RESTART_CLOCKS))
    return actions


def _spawn_missing(s: Seen) -> list[Action]:
    absent = tuple(r.rank for r in s.ranks if r.phase == RankPhase.ABSENT)
    if not absent or s.gang.state != GangState.READY:
        return []
    if s.spawn_age_s is not None and s.spawn_age_s < RESPAWN_S:
        return []
    if s.spawn_tries >= SPAWN_TRIES:
        why = f"rank {absent[0]} could not be started: its shim did not come up in {s.spawn_tries} tries"
        return [Fall(absent[0], why), *([] if s.stopping else [Stop(why, *RESTART_CLOCKS)])]
    return [Spawn(absent)]


def all_over(s: Seen) -> bool:
    return bool(s.ranks) and all(over(s, r) for r in s.ranks)


def halting(s: Seen) -> list[Action]:
    if all_over(s):
        return _tell_fall(s, halt_words(s)) + _finish(s, halt_words(s))
    if late := _outlived(s):
        return late
    fallen = first_fallen(s.ranks)
    if fallen is not None and not s.stopping:  # peers of a dead rank cannot agree on a step any more
        return [*_tell_fall(s, halt_words(s)), Stop(sentence(fallen), *HALT_PEER_CLOCKS)]
    return [KeepHalt()] if s.halt is None else []


def _outlived(s: Seen) -> list[Action]:
    """Ranks that live long after their SIGKILL: swept without their shims, then named. Nothing of it where one cannot
    be seen: whether it lives is not known."""
    late_s = _late_s(s)
    left = [r for r in s.ranks if not over(s, r)]
    if late_s < SHIM_LATE_S or any(r.phase == RankPhase.UNKNOWN for r in left):
        return []
    pids = {r.rank: r.record.pid for r in left if r.phase == RankPhase.ALIVE and r.record and r.record.pid}
    if late_s < STAYED_S:
        return [Sweep(tuple(pids.values()))] if pids else []
    shims = {r.rank: r.record.shim_pid for r in left if r.rank not in pids and r.record}
    words = [f"rank {k}: pid {pid}" for k, pid in pids.items()] + [f"rank {k}: its shim {p}" for k, p in shims.items()]
    words += [f"rank {r.rank}: its shim, which left no record" for r in left if r.record is None]
    stayed = f"these stayed {late_s:.0f} s after their SIGKILL (limit {STAYED_S:.0f} s): {', '.join(words)}"
    return [Verdict((*pids.values(), *shims.values())), Transition(RunState.HALTED, f"{halt_words(s)}; {stayed}")]


def _late_s(s: Seen) -> float:
    """Seconds since the earliest SIGKILL of this halt was due; below 0 before it. Each clock counts from its own
    beginning, as the shims count: `now` may come long after the halt."""
    late_s = s.in_state_s - s.limits.clocks.kill_s
    return late_s if s.now_s is None else max(late_s, s.now_s - s.limits.clocks.now_kill_s)


def _finish(s: Seen, halt: str | None) -> list[Action]:
    """Every rank is over: look for strays, then say how the attempt ended."""
    outcome = judge(s.ranks, halt=halt, verdict=s.verdict, ending=s.memory.health.ending)
    if outcome.how not in (Ended.SUCCEEDED, Ended.HALTED, Ended.FAILED):
        return [_restart(s, outcome)]
    if s.strays is None:
        return []
    if s.strays and s.over_s < STRAYS_LIMIT_S:
        return [Sweep(s.strays)]
    verdict: list[Action] = [Verdict(s.strays)] if halt else []
    left = f"; these processes stayed: pid {', '.join(map(str, s.strays))}" if s.strays else ""
    return [*verdict, Transition(RunState(outcome.how.value), outcome.why + left)]


def _restart(s: Seen, outcome: Outcome) -> Transition:
    gained = s.best_step > s.memory.base_step
    if outcome.how == Ended.BUSY:
        data = {"backoff_s": LEASE_RETRY_S}
        to = RunState.QUEUED if s.memory.state == RunState.STARTING else RunState.RESUMING
        return Transition(to, f"{outcome.why}; looking again every {LEASE_RETRY_S:.0f} s", data)
    if outcome.how == Ended.RESTART_IF_GAINED and not gained:
        return Transition(RunState.FAILED, outcome.why)
    limit = s.limits.restart_max
    spent = 1 if gained else s.memory.spent + 1
    if spent > limit:
        used = f"{limit} restarts brought no new step" if limit else "restarts are off (restart.max is 0)"
        return Transition(RunState.FAILED, f"{outcome.why}; {used}")
    backoff_s = s.limits.backoff_s[min(spent, len(s.limits.backoff_s)) - 1]
    when = f"in {backoff_s:g} s" if backoff_s else "now"
    why = f"{outcome.why}; restarting from the newest checkpoint {when} ({spent} of {limit})"
    return Transition(RunState.RESUMING, why, {"spent": spent, "backoff_s": backoff_s})
