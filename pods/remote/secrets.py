"""The secrets of a run on this pod, for the operator that launched it: kept in memory there, to hide them in logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pods.remote.dispatch import Answer, Operation, want
from workloads.contract.errors import RemoteError
from workloads.contract.rundir import OrchHome
from workloads.contract.secretfile import read_secrets


def read(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{run} -> {values: {name: value}}; empty for a run that has none, or is not here."""
    run = home.run(want(args, "run", str))
    try:
        return Answer({"values": read_secrets(run)})
    except ValueError as e:
        raise RemoteError("E-SEC-008", str(e), where=str(run.secrets)) from e


OPERATIONS: Mapping[str, Operation] = {"read": read}
