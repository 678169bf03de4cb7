"""Content-addressed code on a pod: a store of files by hash, snapshots made of them, and copies of snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pods.remote.dispatch import Operation
from workloads.contract.errors import RemoteError
from workloads.contract.rundir import OrchHome


def materialize(home: OrchHome, snapshot: str, target: Path) -> None:
    """Make `target` a working copy of a snapshot that is in the store. RemoteError when it is not, or is damaged."""
    raise RemoteError("E-CODE-001", f"there is no snapshot {snapshot}", where=str(home.code_store / str(target)))


OPERATIONS: Mapping[str, Operation] = {}
