"""GPU memory as the supervisor tells it: who is in the way of a start, what did not come back after a halt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.supervisor.agent import PodAgent
from orchestrator.supervisor.hands import leases_dir
from pods.remote import gpueye, gpuheld
from tests.pod.fakenvml import A, B, gpu, install
from tests.supervisor.direct import Desk
from tests.supervisor.runs import ROOT, make_run
from workloads.contract.rundir import OrchHome
from workloads.shim.lease import lease, release

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
HELD = "115 GiB of 141 are held by pid 4242 (python train.py, user bob)"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    made = Desk(make_run(OrchHome(tmp_path / "home"), [sys.executable, "-c", SLEEP]))
    yield made
    made.close()


def test_a_start_waits_for_memory_that_somebody_holds_and_says_whose(desk: Desk) -> None:
    desk.gang.held = {"GPU-1": HELD, "GPU-2": "other-20261121T000000Z-0000"}
    desk.turn(
        lambda: desk.status.get("behind") == ["other-20261121T000000Z-0000"]
    )  # a process is no run to wait behind
    assert desk.status["state"] == "queued" and desk.status["attempt"] == 0
    assert desk.status["reason"] == (
        f"a device is in use outside this run: GPU-1: {HELD}, GPU-2 by other-20261121T000000Z-0000; "
        "looking again every 5 s"
    )
    desk.gang.held, desk.engine._leases_at = {}, -100.0
    desk.until("running", 1)


def test_a_halt_is_not_clean_while_memory_stays(desk: Desk) -> None:
    desk.gang.gpu_before, desk.gang.gpu_stays = {"GPU-1": 4.0}, ["GPU-1: 80 GiB are still used, 0.0 before the start"]
    desk.until("running", 1)
    assert desk.events("state")[-2]["data"]["gpu_used_mib"] == {"GPU-1": 4.0}  # type: ignore[index]
    gang = desk.gang
    desk.again()  # a supervisor that is killed finds the baseline in the events
    desk.gang.gpu_before, desk.gang.gpu_stays = gang.gpu_before, gang.gpu_stays
    desk.run.halt.write_text('{"now": true, "who": "me", "why": "enough"}')
    desk.until("halted", timeout_s=60.0)
    (verdict,) = desk.events("verdict")
    assert verdict["why"] == "these stayed: GPU-1: 80 GiB are still used, 0.0 before the start"
    assert verdict["data"] == {"stayed": [], "gpu": ["GPU-1: 80 GiB are still used, 0.0 before the start"]}


def test_what_an_agent_tells_of_its_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    gpus = install(monkeypatch, tmp_path)
    eye = gpueye.GpuEye()
    monkeypatch.setattr(gpueye, "shared", lambda: eye)
    monkeypatch.setattr(gpuheld, "DRAIN_S", 0.0)
    monkeypatch.setattr(PodAgent, "_keep_keeper", lambda self: None)
    home = OrchHome(tmp_path / "home")
    agent = PodAgent("a-20261121T000000Z-0000", "local", (0, 1), str(home.path), sys.executable, str(ROOT))
    agent._devices = (A, B)
    gpus.say(gpu(A, 117_760), gpu(B, 117_760))
    held = lease(leases_dir(), [B], {"run": "other"})
    try:
        busy = agent.busy()
        assert busy[B] == "other" and busy[A].startswith("115 GiB of 141 are held by processes that cannot be seen")
    finally:
        release(held)
    before = agent.gpu_used()
    assert before == {A: 117_760.0, B: 117_760.0} and agent.gpu_left(before) == []
    gpus.say(gpu(A), gpu(B))
    assert agent.busy() == {}
    eye.close()
