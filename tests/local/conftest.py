"""One real keeper and one real Ray for the whole session, in an $ORCH_HOME of its own; a test that kills parts of it
asks for `fresh_orch` instead. Everything is driven through the `orch` command, as a person would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab.endhome import end_home
from workloads.contract.files import try_read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome, RunDir

ROOT = Path(__file__).parents[2]
CLI_TIMEOUT_S = 240.0
CPUS = len(os.sched_getaffinity(0))


@dataclass
class Orch:
    """The `orch` command with a home of its own."""

    home: OrchHome
    work: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ORCH_", "PYTEST_"))}
        return kept | {
            "ORCH_HOME": str(self.home.path),
            "ORCH_LEASES": str(self.home.path / "leases"),
            "PYTHONPATH": str(ROOT),
            **self.extra_env,
        }

    def popen(self, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *args], env=self.env, cwd=self.work,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs,
        )  # fmt: skip
        self.started.append(process)
        return process

    def __call__(self, *args: str, code: int = 0, timeout_s: float = CLI_TIMEOUT_S) -> str:
        """Run `orch ARGS` to its end; its standard output. Fails the test on another exit code."""
        process = self.popen(*args)
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == code, f"orch {' '.join(args)}: exit {process.returncode}\n{out}\n{err}"
        return out

    def json(self, *args: str, code: int = 0) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self(*args, "--json", code=code))
        return row

    def launch(self, *args: str) -> RunDir:
        return self.home.run(self.json("launch", *args)["run"])

    def status(self, run: RunDir) -> dict[str, Any]:
        row: dict[str, Any] = self.json("status", run.run_id)["runs"][0]
        return row

    def state(self, run: RunDir) -> str:
        return str((try_read_json(run.status) or {}).get("state"))

    def wait(self, run: RunDir, *states: str, timeout_s: float = 600.0) -> dict[str, Any]:
        """Until the run is in one of `states`; its status.json."""
        wait_for(lambda: self.state(run) in states, timeout_s, lambda: self.story(run))
        return try_read_json(run.status) or {}

    def wait_step(self, run: RunDir, step: int, timeout_s: float = 600.0) -> None:
        wait_for(lambda: steps_of(run)[-1:] >= [step], timeout_s, lambda: self.story(run))

    def story(self, run: RunDir) -> str:
        """What a failing test needs to show."""
        parts = [f"status: {try_read_json(run.status)}"]
        for path in (run.events, run.supervisor_log, run.rank_log(0), run.shim_log(0), self.home.keeper_log):
            text = path.read_text(errors="replace")[-3000:] if path.exists() else "-"
            parts.append(f"--- {path}\n{text}")
        return "\n".join(parts)

    def close(self) -> None:
        """End everything this home started, by pid; no trace may stay."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=120)
        end_home(self.home)

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self.work.parent, ignore_errors=True)


def wait_for(condition: Callable[[], Any], timeout_s: float, story: Callable[[], str] = lambda: "") -> Any:
    """The first true value of `condition`, within `timeout_s` seconds; else the test fails with the story."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"not within {timeout_s} s\n{story()}")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(run: RunDir) -> list[int]:
    try:
        return [row["step"] for row in rows(run.ledger)]
    except ValueError:  # a line being written
        return []


def losses_of(run: RunDir) -> list[tuple[int, str, str]]:
    """(step, loss as float.hex, batch hash) of every step: what exactness is compared on."""
    return [(r["step"], r["loss"], r["batch_hash"]) for r in rows(run.ledger)]


def events_of(run: RunDir, what: str) -> list[dict[str, Any]]:
    return [e for e in rows(run.events) if e["what"] == what]


def restarts_of(run: RunDir) -> list[str]:
    """Why it was restarted, each time."""
    return [e["why"] for e in events_of(run, "state") if e["to"] == "resuming"]


def rank_pid(run: RunDir, attempt: int, rank: int) -> ProcId:
    r = try_read_json(run.rank_record(attempt, rank)) or {}
    return ProcId(r["pid"], r["start_time"], r["boot_id"])


def make_orch() -> Orch:
    base = Path(tempfile.mkdtemp(prefix="orch-t-", dir="/tmp"))
    (base / "work").mkdir()
    return Orch(OrchHome(base / "home"), base / "work")


@pytest.fixture(scope="session")
def orch() -> Iterator[Orch]:
    made = make_orch()
    yield made
    made.remove()


@pytest.fixture
def fresh_orch() -> Iterator[Orch]:
    """A home of its own, for tests that kill the keeper or Ray."""
    made = make_orch()
    yield made
    made.remove()
