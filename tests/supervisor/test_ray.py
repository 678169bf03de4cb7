"""The supervisor in a real Ray that a real keeper started: killed hard, and its agent too, while the ranks go on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pods.keeper.client import KeeperClient, ensure_keeper, running
from pods.keeper.runs import lock_is_held
from tests.supervisor.runs import ROOT, make_run, request
from workloads.contract.files import read_json, try_read_json
from workloads.contract.process import ProcId, all_pids, marked
from workloads.contract.rundir import OrchHome, RunDir

pytestmark = pytest.mark.ray
CLUSTER = f"{os.getpid():012x}"


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeeperClient]:
    base = Path(tempfile.mkdtemp(prefix="orch-s-", dir="/tmp"))
    home = OrchHome(base / "home")
    monkeypatch.setenv("ORCH_LEASES", str(base / "leases"))
    yield ensure_keeper(home, sys.executable, ROOT)
    record = running(home)
    if record:
        ProcId(record["pid"], record["start_time"], record["boot_id"]).signal(signal.SIGKILL)
    for path in home.runs.glob("*/"):
        for ident in marked(path.name):
            ident.signal(signal.SIGKILL)
    for ident in marked(CLUSTER, "ORCH_CLUSTER"):
        ident.signal(signal.SIGKILL)
    shutil.rmtree(base, ignore_errors=True)
    shutil.rmtree(f"/tmp/orch-{os.getuid()}-ray-{CLUSTER[:8]}", ignore_errors=True)


def wait(run: RunDir, condition: Callable[[dict[str, object]], object], timeout_s: float) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = try_read_json(run.status) or {}
        if condition(status):
            return status
        time.sleep(0.1)
    logs = [p.read_text()[-3000:] for p in (run.events, run.supervisor_log) if p.exists()]
    pytest.fail(f"not within {timeout_s} s: {try_read_json(run.status)}\n" + "\n".join(logs))


def agents(cluster: str) -> set[int]:
    """Pids of the PodAgent workers of one cluster."""
    titles = ((p.pid, Path(f"/proc/{p.pid}/cmdline").read_bytes()) for p in marked(cluster, "ORCH_CLUSTER"))
    return {pid for pid, title in titles if title.startswith(b"ray::PodAgent")}


@pytest.mark.long
def test_killed_hard_it_comes_back_to_the_same_ranks(keeper: KeeperClient) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    run = make_run(keeper.home, argv, cluster=CLUSTER)
    keeper.poke()
    status = wait(run, lambda s: s.get("state") == "running", 600)
    rank = read_json(run.rank_record(1, 0))["pid"]
    supervisor = status["supervisor"]["pid"]  # type: ignore[index]
    os.kill(supervisor, signal.SIGKILL)
    wait(run, lambda s: s["supervisor"]["pid"] != supervisor, 120)  # type: ignore[index]
    before = agents(CLUSTER)
    assert len(before) == 1
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 180
    while not agents(CLUSTER) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert agents(CLUSTER) - before and rank in set(all_pids())
    status = read_json(run.status)
    assert (status["state"], status["attempt"], status["restarts"]) == ("running", 1, 0)
    ask = request(run, "halt", why="the test is over", args={"now": True})
    wait(run, lambda s: s.get("state") == "halted", 120)
    deadline = time.monotonic() + 180
    while (lock_is_held(run.supervisor_lock) or agents(CLUSTER)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not agents(CLUSTER) and not lock_is_held(run.supervisor_lock) and not marked(run.run_id)
    assert read_json(RunDir.ack_of(ask))["ok"] is True
