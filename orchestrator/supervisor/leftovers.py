"""Actors and placement groups that runs left in Ray although they have ended: found by name and removed.

A supervisor removes its own gang when its run ends; this catches what a crash in between left. Called once by each new
supervisor. Only runs of this `$ORCH_HOME` that have ended and that nobody supervises are touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from orchestrator.supervisor.raynames import NAMESPACE
from pods.keeper.runs import lock_is_held, pending_requests
from workloads.contract.files import try_read_json
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome
from workloads.contract.states import ENDED

log = logging.getLogger(__name__)


def is_left(home: OrchHome, run_id: str) -> bool:
    """True when the run has ended, nobody supervises it and nobody asked for its resumption."""
    run = home.run(run_id)
    state = str((try_read_json(run.status) or {}).get("state"))
    return state in ENDED and not pending_requests(run, "resume") and not lock_is_held(run.supervisor_lock)


def leftovers(names: Iterable[str], mine: str, left: Callable[[str], bool]) -> list[str]:
    """Those of `names` (`<run id>` or `<run id>/<pod>`) that belong to other runs that are `left`. Pure."""
    found = []
    for name in sorted(names):
        run_id = name.split("/", 1)[0]
        if run_id != mine and RUN_ID_PATTERN.fullmatch(run_id) and left(run_id):
            found.append(name)
    return found


def sweep_leftovers(home: OrchHome, mine: str) -> None:
    """May raise whatever Ray raises."""
    import ray
    from ray.util import get_placement_group, list_named_actors, placement_group_table, remove_placement_group

    for name in leftovers(list_named_actors(), mine, lambda run_id: is_left(home, run_id)):
        log.info("removing actor %s: its run has ended", name)
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    groups = [row["name"] for row in placement_group_table().values() if row.get("state") != "REMOVED"]
    for name in leftovers(groups, mine, lambda run_id: is_left(home, run_id)):
        log.info("removing placement group %s: its run has ended", name)
        remove_placement_group(get_placement_group(name))
