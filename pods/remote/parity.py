"""The verdicts of parity runs that this pod has kept: what a job that requires parity is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pods.remote.dispatch import Answer, Operation
from workloads.contract.files import try_read_json
from workloads.contract.rundir import OrchHome

MAX_VERDICTS = 4096
KEYS = ("gpu", "driver", "torch", "triton", "code", "suite", "full", "verdict", "cells", "wrong", "run", "ts")


def verdicts(home: OrchHome, _: Mapping[str, Any], __: bytes) -> Answer:
    """{} -> {verdicts: [{gpu, driver, torch, triton, code, suite, full, verdict, cells, wrong, run, ts}]}

    Newest first.
    """
    try:
        names = sorted(p.name for p in home.parity.iterdir())
    except OSError:
        names = []
    rows = [row for n in names[:MAX_VERDICTS] if n.endswith(".json") and (row := try_read_json(home.parity / n))]
    told = [{k: row.get(k) for k in KEYS} for row in rows if row.get("v") == 1]
    return Answer({"verdicts": sorted(told, key=_when, reverse=True)})


def _when(row: Mapping[str, Any]) -> float:
    ts = row.get("ts")
    return float(ts) if isinstance(ts, int | float) else 0.0


OPERATIONS: Mapping[str, Operation] = {"verdicts": verdicts}
