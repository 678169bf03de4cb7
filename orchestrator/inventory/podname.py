"""A name for a machine that was given without one: `python -m orchestrator.inventory.podname 'root@203.0.113.7:40022'`.

The name it has in the inventory, else one made of its host. Nothing is written. Called by `make train`.
"""

from __future__ import annotations

import sys

from pods.inventory import load_inventory
from pods.specwords import slug
from pods.sshline import parse_line
from pods.transport.target import parse_ssh
from workloads.contract.config.inventory import Inventory
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome

MAX_CHARS = 39


def pod_name(inventory: Inventory, text: str) -> str:
    """SpecError or UsageError for what is no machine."""
    ssh = parse_line([text]).ssh
    for name, spec in inventory.pods.items():
        if spec.ssh == ssh:
            return name
    target = parse_ssh(ssh)
    made = slug(target.host, "pod")
    if made not in inventory.pods:
        return made
    tail = f"-{target.port or 22}"
    return made[: MAX_CHARS - len(tail)].rstrip("-") + tail


def main() -> int:
    try:
        print(pod_name(load_inventory(OrchHome.from_env()), " ".join(sys.argv[1:])))
    except OrchError as e:
        print(e.render(), file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
