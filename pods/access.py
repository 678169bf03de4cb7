"""From the name of a pod to one that can be asked: `open_pod`, and `find_pod` for a name that a person typed.

Nothing is connected here: a pod connects when it is first asked. SSH is imported only for a pod that needs it.
"""

from __future__ import annotations

import difflib

from pods.pod import FarPod, LocalPod, Pod
from pods.transport.local import LocalTransport
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.errors import SpecError
from workloads.contract.rundir import OrchHome

LOCAL = "local"


def open_pod(home: OrchHome, name: str, spec: PodSpec, *, reach_s: float | None = None) -> Pod:
    """The pod `name`. `home` is this machine's. The caller closes it. `reach_s`: see `SshTransport`."""
    if spec.local:
        return LocalPod(home, LocalTransport())
    from pods.transport.ssh import SshTransport

    return FarPod(name, SshTransport(name, spec, reach_s=reach_s), root=spec.root, python=spec.python)


def find_pod(home: OrchHome, name: str, *, reach_s: float | None = None) -> tuple[PodSpec, Pod]:
    """The pod that the inventory knows by `name`, not yet connected. SpecError E-INV-020 when it knows none."""
    spec = find_spec(home, name)
    return spec, open_pod(home, name, spec, reach_s=reach_s)


def find_spec(home: OrchHome, name: str) -> PodSpec:
    """What the inventory says of `name`. SpecError E-INV-020 when it knows none; its own errors when it is wrong."""
    from pods.inventory import load_inventory

    inventory = load_inventory(home)
    spec = inventory.pods.get(name)
    if spec is None:
        raise unknown_pod(home, inventory, name)
    return spec


def unknown_pod(home: OrchHome, inventory: Inventory, name: str) -> SpecError:
    near = next(iter(difflib.get_close_matches(name, list(inventory.pods), 1, 0.5)), None)
    return SpecError(
        "E-INV-020", f"there is no pod {name!r} in the inventory", where=str(home.inventory), value=name,
        expected="one of " + ", ".join(inventory.pods), did_you_mean=near,
        fix="orch pods list        or        orch pods add NAME user@host:port",
    )  # fmt: skip
