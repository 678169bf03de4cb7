"""An $ORCH_HOME of its own for each test, and what a test started there is ended."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.jobs.jobfile import command_job
from orchestrator.jobs.launch import Prepared, prepare
from orchestrator.jobs.plan import Plan
from pods.keeper.client import running
from pods.remote.stage import Staged, ensure_home
from workloads.contract.files import atomic_write_json
from workloads.contract.process import ProcId
from workloads.contract.records import Status, as_wire
from workloads.contract.rundir import OrchHome, RunDir


@pytest.fixture
def home() -> Iterator[OrchHome]:
    with tempfile.TemporaryDirectory(prefix="orch-jobs-") as folder:
        found = OrchHome(Path(folder) / "home")
        yield found
        record = running(found)
        if record is not None:
            ProcId(record["pid"], record["start_time"], record["boot_id"]).signal(9)


def prepared_for(home: OrchHome, cwd: Path, *argv: str, run_id: str | None = None) -> Prepared:
    loaded = command_job(argv or ("true",), name="demo", cwd=cwd)
    return prepare(loaded, run_id=run_id, home=home, cwd=cwd, environ={"PATH": "/usr/bin:/bin", "HOME": str(cwd)})


def make_plan_for(home: OrchHome, cwd: Path, *argv: str, run_id: str | None = None) -> Plan:
    return prepared_for(home, cwd, *argv, run_id=run_id).plan


def staged_run(home: OrchHome, cwd: Path) -> RunDir:
    """A submitted run that no keeper knows of."""
    plan = make_plan_for(home, cwd)
    ensure_home(home)
    run = home.run(plan.run_id)
    assert Staged(run, home).commit(plan.run_json(), plan.resolved_config(), b"")
    return run


def set_state(run: RunDir, state: str) -> None:
    status = Status(run.run_id, "demo", state, "a test says so", 1, 0.0, 0.0, ["local"])
    atomic_write_json(run.status, as_wire(status))


def content(path: Path) -> dict[str, object]:
    row: dict[str, object] = json.loads(path.read_text())
    return row
