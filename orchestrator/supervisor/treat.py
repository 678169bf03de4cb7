"""What is done about findings of health, as part of `decide`. Pure.

Every finding is told as an event first; what is sharp is then done out of memory: dump, wait until it is on disk (10 s
at most), then `.HALT`, or the end of this attempt's ranks. Nothing sharp is done while the rank in question cannot be
seen, has moved on since, while the run directory cannot be used, or once a halt was asked for.
"""

from __future__ import annotations

from orchestrator.health.facts import Act, Cleared
from orchestrator.supervisor.actions import Action, AskDump, End, Found, Healed, TellDump, TellLine, WatchdogHalt
from orchestrator.supervisor.illness import Ill, Illness, Mark
from orchestrator.supervisor.seen import RankPhase, RankSeen, Seen
from workloads.contract.health import Rule, Rung

DUMP_WAIT_S = 10.0  # before something sharp
DUMP_LIMIT_S = 60.0
STALLS = frozenset({Rule.NO_STEP, Rule.PHASE_OVER, Rule.STUCK, Rule.STOPPED})
UNSEEN = frozenset({Rule.POD_SILENT, Rule.CLOCK_STEP})
"""Rules about what could not be seen, or about clocks: whatever a job file says, nothing is ended for them."""


def end_clocks(ill: Ill) -> tuple[float, float]:
    """Seconds until SIGTERM and SIGKILL of the ranks that are ended because of it."""
    return (0.0, 0.0) if ill.rung == Rung.KILL else (0.0, 5.0)


def told(s: Seen) -> list[Action]:
    """What was found, healed, dumped, and written by guard and ranks: into the events."""
    health = s.memory.health
    actions: list[Action] = [TellLine(line) for line in s.care.lines]
    for item in s.care.news:
        if isinstance(item, Cleared):
            actions += _heal(health, item)
        elif not _known(health, item):
            actions.append(Found(item, _mark_of(s, item.finding.rank)))
    return [*actions, *_look_anew(s), *_dump(s)]


def _known(health: Illness, act: Act) -> bool:
    """Told already, by a supervisor before this one."""
    ill = health.find(act.finding.key)
    return ill is not None and act.rung in ill.told and ill.observed == act.suppressed


def _heal(health: Illness, item: Cleared) -> list[Action]:
    ill = health.find(item.finding.key)
    return [] if ill is None else [Healed(ill, f"over after {item.after_s:.0f} s: {ill.why}", item.after_s)]


def _look_anew(s: Seen) -> list[Action]:
    """Findings that nobody watches any more. If they hold they are found again, in time that was observed."""
    health = s.memory.health
    if s.care.anew:
        return [Healed(ill, f"the run directory could not be used; looking anew: {ill.why}") for ill in health.open]
    adopted = [ill for ill in health.open if ill.key in s.care.adopted]
    return [Healed(ill, f"it went on since: {ill.why}") for ill in adopted if _moved(s, ill)]


def _dump(s: Seen) -> list[Action]:
    due, seen = s.memory.health.dump, s.care.dump
    if due is None or seen is None or s.care.blind:
        return []
    if seen.ack is not None or seen.age_s >= DUMP_LIMIT_S:
        return [TellDump(due, seen.ack)]
    return [] if seen.asked else [AskDump(due)]


def sharp(s: Seen) -> list[Action]:
    """What is due and may be done now; asked only while nobody has asked for a halt and no rank has fallen."""
    ill = s.memory.health.due
    if ill is None or s.care.blind or s.care.anew or ill.rule in UNSEEN or not _well_seen(s, ill):
        return []
    if _moved(s, ill) and (ill.rule in STALLS or ill.rule == Rule.NO_BEAT):
        return []
    if not ill.dumped and s.care.due_s < DUMP_WAIT_S:
        return []
    return [WatchdogHalt(ill)] if ill.rung == Rung.HALT else [End(ill)]


def _well_seen(s: Seen, ill: Ill) -> bool:
    """The rank in question can be seen at this look; for a pod, one of its ranks."""
    mine = [r for r in s.ranks if r.rank == ill.rank or (ill.rank is None and ill.pod in (None, r.pod))]
    return any(r.phase in (RankPhase.ALIVE, RankPhase.CLOSING, RankPhase.ENDED) for r in mine)


def _moved(s: Seen, ill: Ill) -> bool:
    """Its rank has come further since it was found. Without a rank: that cannot be told, so it is looked at anew."""
    now = _mark_of(s, ill.rank)
    if ill.mark is None or now is None:
        return ill.rank is None
    if ill.rule == Rule.NO_BEAT:
        return now != ill.mark
    return (now.phase, now.step) != (ill.mark.phase, ill.mark.step)


def _mark_of(s: Seen, rank: int | None) -> Mark | None:
    return next((_known_mark(r) for r in s.ranks if r.rank == rank), None)


def _known_mark(rank: RankSeen) -> Mark | None:
    return None if rank.phase == RankPhase.UNKNOWN else rank.mark
