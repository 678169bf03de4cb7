"""Machines that ~/.ssh/config names already, taken into the inventory. Called by `orch pods import`.

Each becomes `ssh: ALIAS`: how it is reached stays written in one place, the configuration of ssh.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from pods.inventory import load_inventory
from pods.specwords import slug
from workloads.contract.errors import LocalError, OrchError, UsageError
from workloads.contract.rundir import NAME_PATTERN, OrchHome

LOCAL = "local"


@dataclass(frozen=True)
class Candidate:
    alias: str
    name: str
    target: str
    """where it leads, hops and all, or why it leads nowhere"""
    there: bool
    """the inventory has it"""


def candidates(home: OrchHome, patterns: Sequence[str]) -> list[Candidate]:
    """The hosts of ~/.ssh/config that match a pattern; all without one. UsageError for a pattern that matches none."""
    from pods.transport.sshconfig import aliases

    names = aliases()
    if not names:
        raise LocalError(
            "E-PODS-040", "~/.ssh/config names no host", where="~/.ssh/config", expected="`Host NAME` lines",
            fix="orch pods add NAME user@host:port",
        )  # fmt: skip
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
            raise UsageError(
                "E-PODS-041", f"~/.ssh/config names no host {pattern!r}", value=pattern,
                expected="one of " + ", ".join(names[:20]), fix="orch pods import --dry-run",
            )  # fmt: skip
    chosen = [n for n in names if not patterns or any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    inventory = load_inventory(home)
    targets = {spec.ssh for spec in inventory.pods.values()}
    found = []
    for alias in chosen:
        name = alias if NAME_PATTERN.fullmatch(alias) and alias != LOCAL else slug(f"pod-{alias}")
        found.append(Candidate(alias, name, _leads_to(alias), name in inventory.pods or alias in targets))
    return found


def _leads_to(alias: str) -> str:
    from pods.transport.sshconfig import resolve

    try:
        hops = resolve(alias)
    except OrchError as e:
        return f"nowhere: {e.what}"
    return " > ".join(f"{hop.user}@{hop.address}" for hop in hops)
