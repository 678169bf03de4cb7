"""Reading the inventory, `$ORCH_HOME/pods.yaml`. A missing file is an inventory of this machine alone.

Never written here but by `orch init`. Called by `orchestrator.jobs.launch`.
"""

from __future__ import annotations

from pods.speccheck import Subject, check
from pods.yamlfile import YamlDoc, read_yaml
from workloads.contract.config.inventory import Inventory
from workloads.contract.errors import SpecError
from workloads.contract.rundir import OrchHome


def load_inventory(home: OrchHome) -> Inventory:
    """The pods a person knows, `local` included. SpecError or ErrorGroup with file and line."""
    path = home.inventory
    if not path.exists() and not path.is_symlink():
        return Inventory().with_local()
    return parse_inventory(read_yaml(path)).with_local()


def parse_inventory(doc: YamlDoc) -> Inventory:
    if doc.data is None:
        return Inventory()
    if not isinstance(doc.data, dict):
        raise SpecError(
            "E-INV-001", "the inventory is not a mapping", where=f"{doc.source}:1",
            expected="`pods:` and names below it", fix="pods: {local: {local: true}}",
        )  # fmt: skip
    return check(Inventory, doc.data, Subject("INV", doc.place, line=doc.line))
