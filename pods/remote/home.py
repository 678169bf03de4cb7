"""Operations on `$ORCH_HOME` of a pod: what is there, and orch's own files for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pods.remote.dispatch import Answer, Operation, want
from pods.remote.stage import ensure_home
from workloads.contract.errors import RemoteError
from workloads.contract.rundir import OrchHome


def tree(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{hash} -> {path, there}: whether orch's own tree of this hash lies here."""
    digest = want(args, "hash", str)
    if not digest.isalnum():
        raise RemoteError("E-HOME-003", "that is no hash", value=digest)
    ensure_home(home)
    path = home.tree(digest)
    return Answer({"path": str(path), "there": path.is_dir()})


OPERATIONS: Mapping[str, Operation] = {"tree": tree}
