"""What a run has in Ray, by name: its placement group and its agents; and the resources of nodes.

Bare calls: whoever makes one bounds it. Called by `gang` and the supervisor's command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.supervisor.spec import RunSpec

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

NAMESPACE = "orch"


def agent_name(run_id: str, pod: str) -> str:
    return f"{run_id}/{pod}"


def worker_env(spec: RunSpec) -> dict[str, Any]:
    """The runtime environment of supervisor and agents, also when Ray starts them again."""
    return {"env_vars": {"PYTHONPATH": str(spec.tree), "ORCH_HOME": str(spec.home)}}


def remove_gang(run_id: str, pods: Sequence[str]) -> None:
    """End the agents, then the placement group. What is gone already is no error."""
    import ray
    from ray.util import remove_placement_group

    for pod in pods:
        handle = actor_of(agent_name(run_id, pod))
        if handle is not None:
            ray.kill(handle, no_restart=True)
    group = group_of(run_id)
    if group is not None:
        remove_placement_group(group)


def group_of(run_id: str) -> PlacementGroup | None:
    from ray.util import get_placement_group

    try:
        group: PlacementGroup = get_placement_group(run_id)
    except ValueError:
        return None
    return group


def group_state(run_id: str) -> str | None:
    """CREATED, PENDING, REMOVED, ...; None when there is no such group."""
    from ray.util import placement_group_table

    group = group_of(run_id)
    return None if group is None else str(placement_group_table(group).get("state"))


def actor_of(name: str) -> Any:
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def node_totals() -> dict[str, dict[str, float]]:
    """pod -> resources of its living node."""
    import ray

    totals: dict[str, dict[str, float]] = {}
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    for node in nodes:
        resources: dict[str, float] = node.get("Resources") or {}
        if node.get("Alive"):
            totals |= {k.removeprefix("pod:"): resources for k in resources if k.startswith("pod:")}
    return totals
