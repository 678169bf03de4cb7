"""A home in which runs were left whose environment is gone: what is new runs to its end, the others tell the truth."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import pytest

from pods.clusterid import cluster_id
from pods.tree import ensure_tree
from tests.local.conftest import Orch, events_of
from tests.supervisor.runs import make_run
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.rundir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.long]
LONG_S = 400.0  # Ray may have to be started twice on a machine that is busy
RAY = importlib.metadata.version("ray")


def left(orch: Orch, name: str, python: str, state: str | None = None, *, created: float = 1.0) -> RunDir:
    """A run of this home's cluster, older than any other, launched with `python`."""
    run = make_run(
        orch.home, [python, "-c", "pass"], name, created=created, tree=str(ensure_tree(orch.home)), cwd="/",
        cluster=cluster_id(["local"], os.getuid(), orch.home, RAY), versions={"orch": "0.1.0", "ray": RAY},
    )  # fmt: skip
    row = read_json(run.run_json)
    pods = [row["pods"][0] | {"python": python, "orch_python": python}]
    atomic_write_json(run.run_json, row | {"pods": pods})
    if state:
        atomic_write_json(run.status, {"v": 1, "run": run.run_id, "name": name, "state": state, "attempt": 1})
    return run


def test_a_run_whose_python_vanished_fails_alone(fresh_orch: Orch, tmp_path: Path) -> None:
    orch, gone = fresh_orch, f"{tmp_path}/deleted/.venv/bin/python"
    old = left(orch, "old", gone, "succeeded")
    waits = left(orch, "waits", gone)
    halts = left(orch, "halts", gone)
    halts.halt.write_text("enough\n")
    left(orch, "torn", gone).run_json.write_text("{torn")
    bare = tmp_path / "bare"  # a Python that starts and has no Ray
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o700)
    left(orch, "poor", str(bare), "succeeded")

    good = orch.home.run(
        json.loads(orch("launch", "--name", "good", "--json", "--", sys.executable, "-c", "print('well')"))["run"]
    )
    assert orch.wait(good, "succeeded", "failed", timeout_s=LONG_S)["state"] == "succeeded", orch.story(good)

    failed = orch.wait(waits, "failed", "succeeded", "halted", timeout_s=LONG_S)
    assert failed["state"] == "failed" and f"its Python is gone: {gone}" in failed["reason"], orch.story(waits)
    assert [e["to"] for e in events_of(waits, "state")][-1] == "failed"
    assert orch.wait(halts, "failed", "succeeded", "halted", timeout_s=LONG_S)["state"] == "halted"
    assert orch.state(old) == "succeeded"
    assert "its Python is gone" in (why := orch("why", waits.run_id))
    assert f"orch resume {waits.run_id} --code current" in why
    assert "a look:" not in orch.home.keeper_log.read_text(), "no look at the home failed"

    orch("resume", waits.run_id, code=3)  # refused: with what it was launched with it would fail again
    orch("resume", waits.run_id, "--code", "current")
    assert orch.wait(waits, "succeeded", timeout_s=LONG_S)["attempt"] == 1, orch.story(waits)
