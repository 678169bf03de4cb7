"""The rules about ranks: what is remembered of a rank in, a finding with its figures or None out. Pure.

A rule of which one sick rank makes the whole gang sick (all wait in the same reduction) is told once, of the rank
that is worst off, with the others named behind it. Called by `monitor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from orchestrator.health import figures, processes, silence
from orchestrator.health.facts import OF_THE_GANG, Finding
from orchestrator.health.gang import Gang
from orchestrator.health.limits import Setting
from orchestrator.health.track import RankTrack
from workloads.contract.health import Rule

RULES: Mapping[Rule, Callable[[Setting, RankTrack, Gang], Finding | None]] = {
    Rule.NO_BEAT: silence.no_beat,
    Rule.NO_STEP: silence.no_step,
    Rule.PHASE_OVER: silence.phase_over,
    Rule.NAN: figures.nan,
    Rule.LOSS_SPIKE: figures.loss_spike,
    Rule.SLOW: figures.slow,
    Rule.ZERO_THROUGHPUT: figures.zero_throughput,
    Rule.DATA_STALL: figures.data_stall,
    Rule.GATE_COLLAPSE: figures.gate_collapse,
    Rule.GRAD_ZERO: figures.grad_zero,
    Rule.BEHIND: silence.behind,
    Rule.GONE: processes.gone,
    Rule.STOPPED: processes.stopped,
    Rule.STUCK: processes.stuck,
}


def of_gang(rule: Rule, s: Setting, gang: Gang, leader: int | None) -> list[Finding]:
    """What the rule finds in the gang: one finding a rank, or one of them all, led by `leader` while it leads."""
    found = [f for t in gang.tracks if (f := RULES[rule](s, t, gang)) is not None]
    if rule not in OF_THE_GANG or len(found) < 2:
        return found
    steps = {t.rank: t.step if t.step is not None else -1 for t in gang.tracks}
    lead = min(found, key=lambda f: (-f.level, f.rank != leader, steps[f.rank or 0], -f.since_s, f.rank))
    others = tuple(sorted(f.rank for f in found if f.rank is not None and f is not lead))
    many = f"; the same is true of rank{'s' * (len(others) > 1)} {ranges(others)}"
    return [replace(lead, why=lead.why + many, others=others)]


def ranges(ranks: Sequence[int]) -> str:
    """`0-2, 4` of [0, 1, 2, 4], which ascend."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
