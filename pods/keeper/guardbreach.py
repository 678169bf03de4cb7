"""A limit of memory that was crossed: whose it is, in one sentence with figures. Reads /proc and nothing else.

Slow beside the looks (all of /proc is read), so it is asked only when something is to be done. Used by `guard` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pods.keeper.guarded import RankHere, memory_mib, processes_of
from pods.keeper.guardrules import MIB, Culprit, gpu_words, host_words, size
from pods.remote.cgroup import Level
from pods.remote.gpuheld import holders, visible
from pods.remote.gpustate import GpuState
from workloads.contract.health import Rule
from workloads.contract.process import ProcId
from workloads.contract.rundir import RunDir


@dataclass(frozen=True)
class Breach:
    """`total`, `used`, `limit` in MiB. `ours`: what fills it is this run."""

    rule: Rule
    why: str
    who: Culprit
    used: float
    total: float | None
    limit: float
    ours: bool
    device: str | None = None


Peers = Sequence[tuple[RunDir, list[RankHere]]]


def gpu_breach(
    run: RunDir, ranks: list[RankHere], rank: RankHere, state: GpuState, limit: float, over_s: float
) -> Breach:
    """Whose memory it is. Without pids that are known here (a container) the lease says that it is the rank's."""
    assert state.used_mib is not None
    mine = {ident.pid: r for ident, r in processes_of(run, ranks).items()}
    seen = [p for p in state.compute or () if visible(p.pid)]
    ours = [p for p in seen if p.pid in mine]
    others = [p for p in seen if p.pid not in mine]
    foreign = sum(p.used_mib or 0.0 for p in others)
    innocent = bool(others) and state.used_mib - foreign <= limit
    who = Culprit(rank.rank, rank.ident.pid)
    if ours:
        largest = max(ours, key=lambda p: p.used_mib or 0.0)
        who = Culprit(mine[largest.pid], largest.pid, largest.used_mib)
    words = f"{size(foreign)} of it are held {holders(others)}, which is not this run's" if others else ""
    why = gpu_words(state.uuid, state.used_mib, state.total_mib, limit, over_s, who, words)
    return Breach(
        Rule.GPU_MEMORY, why, who, state.used_mib, state.total_mib, limit, ours=not innocent, device=state.uuid
    )


def host_breach(
    run: RunDir, ranks: list[RankHere], level: Level, fraction: float, over_s: float, peers: Peers
) -> Breach:
    """The largest process of the run is named. Acted upon is only the largest run, and only if runs fill it.

    `fraction`: the limit; `peers`: the other runs on this pod.
    """
    found = processes_of(run, ranks)
    sizes = {ident: memory_mib(ident.pid) for ident in found}
    largest: ProcId | None = max(sizes, key=lambda p: sizes[p], default=None)
    mine = sum(sizes.values())
    theirs = [sum(memory_mib(p.pid) for p in processes_of(*peer)) for peer in peers]
    used, total = level.used_bytes / MIB, level.limit_bytes / MIB
    ours = mine >= max(theirs, default=0.0) and (mine + sum(theirs)) * 2 >= used
    share = "" if ours else f"this run holds {size(mine)} of it, which is not what fills it"
    who = Culprit(None, None) if largest is None else Culprit(found[largest], largest.pid, sizes[largest])
    why = host_words(level.where, level.used_bytes, level.limit_bytes, fraction, over_s, who, share)
    return Breach(Rule.HOST_MEMORY, why, who, used, total, total * fraction, ours=ours)
