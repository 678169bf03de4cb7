"""The inventory for people and for scripts, and what depends on a pod. Asks no pod. Called by `orch pods`."""

from __future__ import annotations

from typing import Any

from orchestrator.runs.render import table
from pods.transport.hostkeys import fingerprint
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.rundir import OrchHome

SHORT_CHARS = 12
ENDED_SHOWN = 5


def user_and_target(spec: PodSpec) -> tuple[str, str]:
    """`ada`, `host:2222`; `-` where ~/.ssh/config or ssh decides."""
    if spec.local or spec.ssh is None:
        return "-", "this machine"
    user, at, rest = spec.ssh.rpartition("@")
    return (user if at else "-"), rest


def pods_table(inventory: Inventory, width: int = 0) -> str:
    rows = []
    for name, spec in inventory.pods.items():
        user, target = user_and_target(spec)
        pinned = "-" if spec.local else short(spec.host_key) or "not pinned"
        rows.append([name, target, user, pinned, spec.root or "-", spec.python or "-"])
    return table(("POD", "TARGET", "USER", "HOST KEY", "ROOT", "PYTHON"), rows, width=width)


def pods_json(inventory: Inventory) -> list[dict[str, Any]]:
    return [pod_json(name, spec) for name, spec in inventory.pods.items()]


def pod_json(name: str, spec: PodSpec) -> dict[str, Any]:
    return {"name": name, **spec.model_dump(), "fingerprint": fingerprint(spec.host_key) if spec.host_key else None}


def short(host_key: str | None) -> str:
    """The beginning of the fingerprint, with the kind of key: enough to tell two machines apart, not to trust one."""
    if not host_key:
        return ""
    return f"{host_key.split(' ')[0].removeprefix('ssh-')} {fingerprint(host_key)[7 : 7 + SHORT_CHARS]}…"


def shown(name: str, spec: PodSpec) -> str:
    """One pod on one line, for errors."""
    return f"{name}: {spec.ssh or 'this machine'}" + (f", {short(spec.host_key)}" if spec.host_key else "")


def runs_on(home: OrchHome, name: str) -> list[str]:
    """Ids of the runs that the index knows on a pod, newest first."""
    from orchestrator.runs.index import list_runs

    return [row.run for row in list_runs(home, note=lambda _: None) if row.pod == name or name in row.pods]
