"""Supervisor and memory guard together: what the guard did is told before the death it caused, and the run goes on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.keeper.guard import Guard
from tests.lab.limits import MemoryLimit
from tests.lab.need import LabUnavailable
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome

EATER = """
import os, time
def eat():
    with open({procs!r}, "w") as f: f.write(str(os.getpid()))
    held = []
    for _ in range(17):
        held.append(bytearray(b"x" * (10 << 20)))
        time.sleep(0.02)
    time.sleep(600)
if os.environ["ORCH_ATTEMPT"] == "1": eat()
time.sleep(600)
"""


@pytest.fixture
def limit() -> Iterator[MemoryLimit]:
    try:
        made = MemoryLimit(f"orch-guarded-{os.getpid()}", 240)
    except LabUnavailable as e:
        pytest.skip(str(e))
    yield made
    made.close()


@pytest.mark.lab
@pytest.mark.long
def test_a_rank_that_the_guard_ended_is_restarted_and_the_events_say_why(
    limit: MemoryLimit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    wanted = {"mode": "act", "action": "kill", "host_limit_fraction": 0.6, "host_over_secs": 0.2, "poll_secs": 0.05}
    job = {"restart": {"max": 3, "backoff_s": [0]}, "health": {"guard": wanted}}
    argv = [sys.executable, "-c", EATER.format(procs=str(limit.path / "cgroup.procs"))]
    desk = Desk(make_run(OrchHome(tmp_path / "home"), argv, job=job))
    row, ended = read_json(desk.run.run_json), threading.Event()
    guard = Guard(lambda: [(desk.run, row)], lambda _: None, ended)
    guard.start()
    try:
        desk.until("running", 2, timeout_s=60.0)
        guarded, fall = desk.events("guard"), desk.events("rank-exit")[0]
        assert [e["data"]["did"] for e in guarded] == ["dump, kill", "dumped"]  # type: ignore[index]
        assert "eat" in str(guarded[1]["why"])
        assert int(str(guarded[0]["seq"])) < int(str(fall["seq"]))
        assert "SIGKILL" in str(fall["why"]) and guarded[0]["data"]["rank"] == fall["data"]["rank"] == 0  # type: ignore[index]
        assert limit.oom_kills == 0 and desk.pid(2, 0).alive()
    finally:
        ended.set()
        guard.settle(30.0)
        desk.close()
