"""Scripts under real shims: a `Desk` a run, halted through its file, and what its rows say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome, RunDir

SCRIPTS = Path(__file__).parent / "scripts"
STEPS = 150
WAIT_S = 600.0
Make = Callable[..., Desk]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    home = OrchHome(tmp_path / "home")
    desks: list[Desk] = []

    def build(script: str, *args: str, name: str, world: int = 1, checkpoint: dict[str, object] | None = None) -> Desk:
        work = tmp_path / name  # a directory of its own, where a trainer leaves its own output
        work.mkdir()
        argv = [sys.executable, str(SCRIPTS / script), *args]
        run = make_run(home, argv, name=name, world=world, cwd=str(work))
        row = read_json(run.run_json)
        row["job"]["checkpoint"] = checkpoint or {}
        run.run_json.write_text(json.dumps(row))
        desks.append(Desk(run))
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


def losses(run: RunDir) -> list[tuple[str, str]]:
    """(step, loss) as they stand in training.csv."""
    header, *rows = run.training_csv.read_text().splitlines()
    assert header.startswith("step,loss,")
    return [(cells[0], cells[1]) for cells in (row.split(",") for row in rows)]


def rows(run: RunDir) -> int:
    return run.training_csv.read_text().count("\n") - 1 if run.training_csv.exists() else 0


def story(desk: Desk) -> str:
    return "\n".join(p.read_text() for p in desk.run.logs.glob("rank*.log"))


def halt(desk: Desk, after: int) -> int:
    """Ask for a halt once that many steps were made; where it stopped."""
    desk.turn(lambda: rows(desk.run) >= after, WAIT_S)
    desk.run.halt.write_text("enough")
    desk.until("halted", timeout_s=WAIT_S)
    return int(str(read_json(desk.run.halt_ack(0))["step"]))
