"""Why a run is queued: what it needs, what the cluster has, and which live runs hold it. Reads run directories only.

The arithmetic is pure (`explain`); `holders` reads the other runs' status.json and run.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.supervisor.spec import RunSpec, parse_spec
from workloads.contract.errors import IntegrityError
from workloads.contract.files import try_read_json
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome
from workloads.contract.states import ENDED, RunState

Resources = Mapping[str, float]
_SHOWN = ("CPU", "GPU")


@dataclass(frozen=True)
class Holder:
    """A live run and what it holds on each pod."""

    run_id: str
    state: str
    holds: Mapping[str, Resources]


def holders(home: OrchHome, spec: RunSpec) -> list[Holder]:
    """Runs of the same cluster that have not ended, oldest first, without this one."""
    found = []
    for path in sorted(home.runs.glob("*/")):
        if path.name == spec.run_id or not RUN_ID_PATTERN.fullmatch(path.name):
            continue
        run = home.run(path.name)
        state = str((try_read_json(run.status) or {}).get("state", RunState.QUEUED.value))
        if state in ENDED:
            continue
        try:
            other = parse_spec(try_read_json(run.run_json) or {})
        except IntegrityError:
            continue
        if other.cluster == spec.cluster:
            found.append((other.created, Holder(path.name, state, {p.name: other.bundle(p) for p in other.pods})))
    return [holder for _, holder in sorted(found, key=lambda pair: pair[0])]


def impossible(spec: RunSpec, totals: Mapping[str, Resources]) -> str | None:
    """The figures, when a pod that is there is too small for ever. `totals`: pod -> what its node has."""
    for pod in spec.pods:
        have = totals.get(pod.name)
        if have is None:
            continue
        for kind in _SHOWN:
            need = spec.bundle(pod).get(kind, 0.0)
            if need > have.get(kind, 0.0):
                what = f"{need:g} {kind}s" if need != 1 else f"1 {kind}"
                return f"pod {pod.name} has {have.get(kind, 0.0):g} {kind}s, this run needs {what}: it can never start"
    return None


def explain(spec: RunSpec, totals: Mapping[str, Resources], live: Sequence[Holder]) -> tuple[str, tuple[str, ...]]:
    """(reason, runs that this one waits for)."""
    missing = [pod.name for pod in spec.pods if pod.name not in totals]
    if missing:
        return f"pod {', '.join(missing)} has not joined the cluster yet", ()
    holding = [h for h in live if h.state != RunState.QUEUED]
    for pod in spec.pods:
        need, have = spec.bundle(pod), totals[pod.name]
        for kind in _SHOWN:
            used = sum(h.holds.get(pod.name, {}).get(kind, 0.0) for h in holding)
            if need.get(kind, 0.0) > have.get(kind, 0.0) - used:
                by = tuple(h.run_id for h in holding if h.holds.get(pod.name, {}).get(kind, 0.0))
                free = max(have.get(kind, 0.0) - used, 0.0)
                figures = f"needs {need[kind]:g} of {have.get(kind, 0.0):g} {kind}s on {pod.name}, {free:g} free"
                return f"{figures}; behind {', '.join(by)}", by
    waiting = tuple(h.run_id for h in live if h.state == RunState.QUEUED)
    return "waits for Ray to place it" + (f"; also queued: {', '.join(waiting)}" if waiting else ""), ()
