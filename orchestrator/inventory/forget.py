"""Taking a pod out of the inventory, and saying which runs were on it. Called by `orch pods forget`."""

from __future__ import annotations

from orchestrator.inventory.openssh import forget_file
from orchestrator.inventory.table import runs_on
from pods.access import find_spec
from pods.inventoryfile import remove_entry
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import UsageError
from workloads.contract.rundir import OrchHome


def forget(home: OrchHome, name: str) -> tuple[PodSpec, list[str]]:
    """What was known of it, and its runs, newest first. Nothing on the pod is touched, and nobody is asked."""
    spec = find_spec(home, name)
    if spec.local:
        raise UsageError("E-PODS-034", "this machine cannot be forgotten", value=name, fix="orch pods list")
    runs = runs_on(home, name)
    remove_entry(home, name)
    forget_file(home, name)
    return spec, runs
