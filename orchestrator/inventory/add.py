"""Taking a machine into the inventory: its key is fetched, confirmed and pinned before anything else is said to it.

`add` writes the pod down even when it does not let us in: the key is what had to be decided, the rest can be mended.
`repin` does the same for a pod that is there and shows a new key. Called by `orch pods add`, `import` and `repin`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.inventory.table import shown
from orchestrator.inventory.trust import Trust, confirm_on_the_way, decide
from pods.inventory import load_inventory
from pods.inventoryfile import add_entry, change_entry
from pods.specwords import NAME_IN_WORDS, slug
from pods.transport.hostkeys import HostKey, fingerprint, parse_key
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.errors import ConflictError, OrchError, SpecError, UsageError
from workloads.contract.rundir import NAME_PATTERN, OrchHome

CONNECT_S = 20.0
LOCAL = "local"


@dataclass(frozen=True)
class Added:
    name: str
    spec: PodSpec
    keys: Sequence[HostKey] = ()
    created: bool = True
    """False: it was there already (`--if-missing`), and nothing was asked"""
    found: list[str] = field(default_factory=list)
    """what the machine said of itself, in words"""
    trouble: OrchError | None = None
    """why it does not let us in; it is in the inventory all the same"""


def check_name(name: str) -> None:
    if name == LOCAL:
        raise UsageError(
            "E-PODS-030", "`local` is this machine, always", value=name, expected="another name", fix="orch pods list"
        )
    if not NAME_PATTERN.fullmatch(name):
        near = slug(name, "pod")
        raise UsageError(
            "E-PODS-031", "that is no name for a pod", value=name, expected=NAME_IN_WORDS, did_you_mean=near,
            fix=f"orch pods add {near} ...",
        )  # fmt: skip


def add(home: OrchHome, name: str, spec: PodSpec, trust: Trust, *, if_missing: bool = False) -> Added:
    """ConflictError when the name or the machine is there, RefusedError when its key is not confirmed."""
    from pods.transport.sshlink import fetch_host_keys

    check_name(name)
    inventory = load_inventory(home)
    if name in inventory.pods:
        there = inventory.pods[name]
        if if_missing and there.ssh == spec.ssh:
            return Added(name, there, created=False)
        raise ConflictError(
            "E-INV-021", f"there is a pod {name} already", where=str(home.inventory), value=shown(name, there),
            fix=f"orch pods forget {name}   (or choose another name)",
        )  # fmt: skip
    _refuse_same_target(home, inventory, name, spec)
    keys = fetch_host_keys(name, spec, confirm=confirm_on_the_way(name, trust))
    _refuse_same_machine(home, inventory, name, keys[-1])
    decide(name, keys, replace(trust, others=_others(spec, keys)))
    pinned = with_keys(spec, keys)
    add_entry(home, name, pinned)
    return look(Added(name, pinned, keys))


def repin(home: OrchHome, name: str, spec: PodSpec, trust: Trust) -> Added:
    """Pin the key that the machine shows now. `created` is False when it is the pinned one."""
    from pods.transport.sshlink import fetch_host_keys

    if spec.local:
        raise UsageError("E-PODS-032", "this machine has no key to pin", value=name, fix="orch pods list")
    blank = spec.model_copy(update={"host_key": None, "jump_keys": []})
    keys = fetch_host_keys(name, blank, confirm=confirm_on_the_way(name, trust, spec.jump_keys))
    inventory = load_inventory(home)
    _refuse_same_machine(home, inventory, name, keys[-1])
    fresh = with_keys(spec, keys)
    if (_normal(fresh.host_key), fresh.jump_keys) == (_normal(spec.host_key), spec.jump_keys):
        return Added(name, spec, keys, created=False)
    old = fingerprint(parse_key(spec.host_key)) if spec.host_key else None
    decide(name, keys, replace(trust, pinned=(old,) if old else (), others=_others(spec, keys)))
    change_entry(home, name, host_key=str(fresh.host_key), jump_keys=fresh.jump_keys)
    return look(Added(name, fresh, keys))


def with_keys(spec: PodSpec, keys: Sequence[HostKey]) -> PodSpec:
    return spec.model_copy(update={"host_key": keys[-1].key, "jump_keys": [k.key for k in keys[:-1]]})


def look(added: Added) -> Added:
    """Connect and prove who we are; what the machine says, or why it says no."""
    from pods.transport.ssh import SshTransport

    transport = SshTransport(added.name, added.spec)
    try:
        said = transport.run(["/bin/sh", "-c", _LOOK], timeout_s=CONNECT_S)
    except OrchError as e:
        return replace(added, trouble=e)
    finally:
        transport.close()
    return replace(added, found=[line for line in said.stdout.splitlines() if line.strip()][:4])


_LOOK = """
printf '%s, %s CPUs' "$(uname -srm)" "$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo ?)"
n=0; for d in /dev/nvidia[0-9]*; do [ -e "$d" ] && n=$((n+1)); done
printf ', %s GPUs\\n' "$n"
"""


def spec_of(
    ssh: str, identity: str | None, *, root: str | None = None, python: str | None = None, address: str | None = None
) -> PodSpec:
    """A pod as it is asked for. A relative key file is taken from where the command was typed."""
    if root is not None and not root.startswith(("/", "~")):
        raise UsageError(
            "E-PODS-033", "--root must be a whole path on the pod", where="--root", value=root,
            expected="/workspace/orch or ~/orch", fix=f"--root {shlex.quote(f'~/{root}')}",
        )  # fmt: skip
    path = identity if identity is None or identity.startswith("~") else str(Path(identity).absolute())
    return PodSpec(ssh=ssh, identity=path, root=root, python=python, address=address)


def _refuse_same_target(home: OrchHome, inventory: Inventory, name: str, spec: PodSpec) -> None:
    for other, there in inventory.pods.items():
        if there.ssh is not None and there.ssh == spec.ssh:
            raise _one_machine(home, other, name, str(spec.ssh), "ssh")


def _refuse_same_machine(home: OrchHome, inventory: Inventory, name: str, key: HostKey) -> None:
    for other, there in inventory.pods.items():
        if other != name and _normal(there.host_key) == key.key:
            raise _one_machine(home, other, name, f"{key.fingerprint} at {key.host}", "host_key")


def _one_machine(home: OrchHome, other: str, name: str, value: str, field: str) -> ConflictError:
    from pods.yamlfile import read_yaml

    what = "shows the host key" if field == "host_key" else "has the target"
    return ConflictError(
        "E-INV-027", f"{name} {what} of pod {other}: one machine, two names", value=value,
        where=read_yaml(home.inventory).place(f"pods.{other}.{field}"),
        fix=f"use {other}, or first: orch pods forget {other}   (keys baked into an image: make new ones there)",
    )  # fmt: skip


def _others(spec: PodSpec, keys: Sequence[HostKey]) -> dict[str, str]:
    """Where known_hosts has another key of the same kind for the pod: its fingerprint, to be shown beside the new."""
    from pods.transport.hostkeys import known_keys
    from pods.transport.sshconfig import resolve

    hop, key = resolve(str(spec.ssh))[-1], keys[-1]
    trusted = known_keys(hop.known_hosts, hop.host, hop.port, hop.key_alias).keys
    found = [k for k in trusted if k.split(" ")[0] == key.kind]
    return {key.host: fingerprint(found[0])} if found and key.key not in found else {}


def _normal(key: str | None) -> str | None:
    try:
        return parse_key(key) if key else None
    except SpecError:
        return None
