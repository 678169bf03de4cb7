"""Rules about what a rank tells: its loss, gradient, throughput, data and gates. Pure. Listed in `rules.RULES`."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.health.facts import Finding
from orchestrator.health.gang import Gang, finding, secs, step_of
from orchestrator.health.limits import Setting
from orchestrator.health.track import RankTrack, bad
from workloads.contract.healthtable import GATE_COLLAPSE_MAX, GATE_ENTROPY_MIN, GATE_MAX

GRAD_PATIENCE = 10
"""Beats with a bad grad_norm and a good loss: a loss scaler that looks for its scale skips such steps."""
SLOW_FOR_S = 120.0
FETCH_MIN_S = 0.1
"""A share of a step that short is nobody's waiting."""


def nan(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    counts, beat = track.counts, track.newest
    in_a_row = max(counts.loss_bad, counts.grad_bad)
    if in_a_row < s.in_a_row or beat is None:
        return None
    sharp = counts.loss_bad >= s.in_a_row or counts.grad_bad >= max(s.in_a_row, GRAD_PATIENCE)
    named = [f"{n} {beat.get(n)}" for n in ("loss", "grad_norm") if bad(beat.get(n))]
    what = " and ".join(named) or "loss or grad_norm not finite"
    began, now = counts.bad_from, step_of(track)
    when = f"at step {now}" if began is None or began == track.step else f"from step {began} to {now}"
    why = f"rank {track.rank} told {what} {when}, {in_a_row} beats in a row (limit {s.in_a_row})"
    return replace(finding(s, track, why, float(in_a_row), float(s.in_a_row), 0.0, int(sharp)), unit="beats in a row")


def loss_spike(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    z = track.spike(s.in_a_row, s.limit)
    if z is None or track.newest is None:
        return None
    usual = sorted(track.losses)[len(track.losses) // 2]
    why = (
        f"rank {track.rank} told loss {track.newest.get('loss'):.4g} at step {step_of(track)}, robust z {z:.1f} "
        f"(limit {s.limit:g}) over a median of {usual:.4g}, {s.in_a_row} beats in a row"
    )
    return finding(s, track, why, z, s.limit, 0.0, 1)


def slow(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    low = None
    for at, pace in reversed(track.paces):
        if pace >= s.limit:
            break
        low = at
    if low is None or track.age(low) < SLOW_FOR_S:
        return None
    pace = track.paces[-1][1]
    why = (
        f"rank {track.rank} makes {pace:.0%} of its own median tokens/s for {secs(track.age(low))} "
        f"(limit {s.limit:.0%} for {secs(SLOW_FOR_S)})"
    )
    return finding(s, track, why, pace, s.limit, track.age(low) - SLOW_FOR_S, 1)


def zero_throughput(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    n = track.counts.zero_rate
    if n < s.in_a_row:
        return None
    why = f"rank {track.rank} told toks_per_s <= 0 {n} times in a row (limit {s.in_a_row}), at step {step_of(track)}"
    return replace(finding(s, track, why, float(n), float(s.in_a_row), 0.0, 1), unit="beats in a row")


def data_stall(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    fetches = track.fetches
    if len(fetches) < (fetches.maxlen or 1):
        return None
    fetch_s, step_s = (sum(x) / len(fetches) for x in zip(*fetches, strict=True))
    share = min(1.0, fetch_s / step_s)
    if share <= s.limit or fetch_s < FETCH_MIN_S:
        return None
    why = (
        f"rank {track.rank} waits for data {share:.0%} of the time (limit {s.limit:.0%}): "
        f"{fetch_s:.2f} s of a step of {step_s:.2f} s, mean of {len(fetches)} beats"
    )
    return finding(s, track, why, share, s.limit, 0.0, 1)


def gate_collapse(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    beat, n = track.newest, track.counts.gates
    if n < s.in_a_row or beat is None:
        return None
    told = [
        (beat.get("gate_entropy_mean"), "entropy", "at least", GATE_ENTROPY_MIN),
        (beat.get("gate_max_gate"), "largest gate", "at most", GATE_MAX),
        (beat.get("gate_collapse_frac"), "collapsed share", "at most", GATE_COLLAPSE_MAX),
    ]
    figures = ", ".join(f"{name} {v:.3g} (limit {side} {limit:g})" for v, name, side, limit in told if v is not None)
    why = f"rank {track.rank}: gates collapse, {figures}, {n} beats in a row (limit {s.in_a_row})"
    return replace(finding(s, track, why, float(n), float(s.in_a_row), 0.0, 1), unit="beats in a row")


def grad_zero(s: Setting, track: RankTrack, gang: Gang) -> Finding | None:
    n = track.counts.zero_grad
    if n < s.in_a_row:
        return None
    why = f"rank {track.rank} told grad_norm 0 at step {step_of(track)}, {n} times in a row (limit {s.in_a_row})"
    return replace(finding(s, track, why, float(n), float(s.in_a_row), 0.0, 1), unit="beats in a row")
