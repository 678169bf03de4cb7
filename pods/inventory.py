"""Reading the inventory, `$ORCH_HOME/pods.yaml`. A missing file is an inventory of this machine alone.

All mistakes are told at once, each with its line: the targets are parsed, the pinned keys looked at, and two names for
one machine refused. Never written here (`pods.inventoryfile`). Called by whoever needs to know a pod.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pods.speccheck import Subject, check
from pods.specwords import Broken
from pods.transport.hostkeys import parse_key
from pods.transport.target import parse_ssh
from pods.yamlfile import YamlDoc, read_yaml
from workloads.contract.config.inventory import Inventory
from workloads.contract.errors import OrchError, SpecError
from workloads.contract.rundir import OrchHome

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def load_inventory(home: OrchHome) -> Inventory:
    """The pods a person knows, `local` included. SpecError or ErrorGroup with file and line."""
    path = home.inventory
    if not path.exists() and not path.is_symlink():
        return Inventory().with_local()
    return parse_inventory(read_yaml(path)).with_local()


def parse_inventory(doc: YamlDoc) -> Inventory:
    data = doc.data
    if data is None:
        return Inventory()
    if not isinstance(data, dict):
        raise SpecError(
            "E-INV-001", "the inventory is not a mapping", where=f"{doc.source}:1",
            expected="`pods:` and names below it", fix="pods: {local: {local: true}}",
        )  # fmt: skip
    if data.get("pods", ()) is None:  # `pods:` and, as yet, nothing below it
        data = {**data, "pods": {}}
    subject = Subject("INV", doc.place, line=doc.line, rules=lambda inventory: list(_rules(inventory, doc)))
    return check(Inventory, data, subject, more=list(_entries(data, doc)))


def _entries(data: dict[str, Any], doc: YamlDoc) -> Iterator[OrchError]:
    """What is wrong with single values that a type alone does not show."""
    pods = data.get("pods")
    for name, entry in pods.items() if isinstance(pods, dict) else ():
        if not isinstance(entry, dict):
            continue
        path = f"pods.{name}"
        jumps = entry.get("jump_keys")
        values: list[tuple[str, object, Callable[[str], object]]]
        values = [("ssh", entry.get("ssh"), parse_ssh), ("host_key", entry.get("host_key"), parse_key)]
        values += [
            (f"jump_keys[{i}]", key, parse_key) for i, key in enumerate(jumps if isinstance(jumps, list) else ())
        ]
        for field, value, parse in values:
            if isinstance(value, str):
                try:
                    parse(value)
                except OrchError as e:
                    e.what = f"{path}.{field}: {e.what}"
                    e.where = doc.place(f"{path}.{field}")
                    if field != "ssh":  # `repin` needs a file that can be read
                        e.fix = f"remove the key, then: orch pods repin {name}"
                    yield e


def _rules(inventory: Inventory, doc: YamlDoc) -> Iterator[Broken]:
    by_key: dict[str, str] = {}
    by_target: dict[str, str] = {}
    for name, spec in inventory.pods.items():
        path = f"pods.{name}"
        for field in ("identity", "root", "python", "address"):
            said: str | None = getattr(spec, field)
            if said is not None and (not said.strip() or _UNPRINTABLE.search(said)):
                wrong = f"{path}.{field} is empty or holds control characters"
                yield Broken(f"{path}.{field}", wrong, value=said, fix="remove the key")
        if spec.root is not None and not spec.root.startswith(("/", "~")):
            yield Broken(
                f"{path}.root", f"{path}.root must be a whole path", "/workspace/orch or ~/orch",
                f"root: ~/{spec.root}", spec.root,
            )  # fmt: skip
        if spec.local and (extra := [f for f in ("host_key", "identity", "jump_keys") if getattr(spec, f)]):
            yield Broken(f"{path}.{extra[0]}", f"{path}.{extra[0]} has no effect on this machine", fix="remove the key")
        for seen, what, field in ((by_key, _key(spec.host_key), "host_key"), (by_target, spec.ssh, "ssh")):
            first = seen.setdefault(what, name) if what else name
            if first != name:
                yield _twice(doc, first, name, field)
                break


def _key(text: str | None) -> str | None:
    try:
        return parse_key(text) if text else None
    except SpecError:  # told as such already
        return None


def _twice(doc: YamlDoc, first: str, second: str, field: str) -> Broken:
    what = "the host key" if field == "host_key" else "the target"
    return Broken(
        f"pods.{second}.{field}",
        f"pods.{second} has {what} of pods.{first} (line {doc.line(f'pods.{first}.{field}')}): one machine, two names",
        "each machine once", f"remove pods.{second} from the file",
    )  # fmt: skip
