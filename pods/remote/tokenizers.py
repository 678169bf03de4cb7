"""Vocabularies on this pod: put there by `orch data import`, where every run of the pod finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pods.remote.dispatch import Answer, Operation
from workloads.contract import gptvocab
from workloads.contract.files import atomic_write
from workloads.contract.rundir import OrchHome


def keep(home: OrchHome, _: Mapping[str, Any], data: bytes) -> Answer:
    """GPT-2's canonical vocabulary -> {path}. IntegrityError when `data` is anything else."""
    path = home.tokenizers / gptvocab.FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(path, gptvocab.checked(data, "what arrived"))
    return Answer({"path": str(path)})


OPERATIONS: Mapping[str, Operation] = {"keep": keep}
