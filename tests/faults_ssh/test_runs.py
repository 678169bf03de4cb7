"""A run on a pod, launched over links that break, and watched through cuts and reboots: one run, never called dead
while nobody can know, and going on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.fixtures import MakeLab
from tests.lab.lab import Lab, Ran
from tests.lab.pod import LabPod
from workloads.contract.rundir import make_run_id

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.ray]
RUN_S = 120.0
COUNTS = "import time\nfor i in range(3000):\n    print('line', i, flush=True)\n    time.sleep(0.1)\n"


def work(lab: Lab, script: str) -> Path:
    """A directory on the laptop with one program."""
    made = lab.place / "work"
    made.mkdir(exist_ok=True)
    (made / "program.py").write_text(script)
    return made


def launch(lab: Lab, script: str, *more: str) -> Ran:
    words = ("launch", "--pod", "pod-a", "--name", "probe", "--json", *more, "--", "python", "program.py")
    return lab.orch(*words, cwd=work(lab, script), timeout_s=RUN_S)


def launched(lab: Lab, script: str) -> str:
    done = launch(lab, script)
    assert done.code == 0, done.err
    return str(json.loads(done.out)["run"])


def status(lab: Lab, run: str) -> dict[str, Any]:
    done = lab.orch("status", run, "--json")
    assert done.out, done.err
    row: dict[str, Any] = json.loads(done.out)["runs"][0]
    return row


def wait(lab: Lab, run: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + RUN_S
    while not wanted(row := status(lab, run)):
        assert time.monotonic() < deadline, row
        time.sleep(0.5)
    return row


def lines(pod: LabPod, run: str) -> int:
    """How far the program came, seen on the pod itself."""
    return sum(p.read_text().count("line") for p in pod.path(f"/root/.orch/runs/{run}/logs").glob("rank0*"))


def runs_there(pod: LabPod) -> list[str]:
    return sorted(p.name for p in pod.path("/root/.orch/runs").iterdir())


def test_a_launch_cut_anywhere_and_asked_again_is_one_run(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    ids = []

    def cut_launch(run_id: str, size: int) -> int:
        with pod.cut_after(size):
            return launch(lab, "print('done')\n", "--id", run_id).code

    def whole_launch(run_id: str) -> int:
        """Launched uncut; how many bytes it took."""
        ids.append(run_id)
        with pod.metered() as read:
            done = launch(lab, "print('done')\n", "--id", run_id)
            assert done.code == 0, done.err
            assert runs_there(pod) == sorted(ids)
            return read()

    first = make_run_id("probe", time.time())
    codes = [cut_launch(first, size) for size in (2000, 20_000, 60_000, 120_000, 200_000)]
    assert codes[:3] == [4, 4, 4] and set(codes) <= {0, 4}  # what arrived is not sent again: later ones may get through
    whole_launch(first)
    total = whole_launch(make_run_id("probe", time.time()))
    for part in (0.3, 0.6, 0.8, 0.9, 0.97):
        run_id = make_run_id("probe", time.time())
        assert cut_launch(run_id, int(total * part)) in (0, 4)
        whole_launch(run_id)
    for run_id in ids:
        ended = wait(lab, run_id, lambda row: row["state"] in ("succeeded", "failed"))
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1), ended
    assert runs_there(pod) == sorted(ids)


def test_a_run_goes_on_through_a_cut_and_is_unreachable_not_dead(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    run = launched(lab, COUNTS)
    wait(lab, run, lambda row: row["state"] == "running" and lines(pod, run) > 0)
    with pod.cut():
        before = lines(pod, run)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            row = status(lab, run)
            assert row["state"] == "running" and row["pod_reachable"] is False, row
        told = lab.orch("status")
        assert "unreachable" in told.out and "dead" not in told.out.lower()
        halted = lab.orch("halt", run)
        assert halted.code == 4 and "Traceback" not in halted.err
        assert lines(pod, run) > before + 100
    row = status(lab, run)
    assert row["state"] == "running" and row["attempt"] == 1 and row.get("pod_reachable", True) is True
    assert lab.orch("logs", run, "-n", "1").out.startswith("line ")
    assert lab.orch("halt", run, "--now", timeout_s=RUN_S).code == 0
    assert not [p for p in pod.processes() if "program.py" in " ".join(p.argv)]


@pytest.mark.parametrize("new_boot_id", [True, False], ids=["reboot", "container-restart"])
def test_a_pod_that_starts_anew_has_its_run_started_again(make_lab: MakeLab, new_boot_id: bool) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    run = launched(lab, COUNTS)
    wait(lab, run, lambda row: row["state"] == "running" and lines(pod, run) > 0)
    pod.power_cut()
    row = status(lab, run)
    assert row["state"] == "running" and row["pod_reachable"] is False, row
    pod.boot(new_boot_id=new_boot_id)
    row = wait(lab, run, lambda row: row["attempt"] == 2 and row["state"] == "running")
    events = [json.loads(x) for x in pod.path(f"/root/.orch/runs/{run}/events.jsonl").read_text().splitlines()]
    lost = [e["why"] for e in events if e["what"] == "rank-exit"]
    assert len(lost) == 1 and (not new_boot_id or "boot id" in lost[0]), events
    assert len([p for p in pod.processes() if "program.py" in " ".join(p.argv) and "python" in p.argv[0]]) >= 1


def test_a_launch_over_a_far_slow_and_lossy_link_is_a_run(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    with pod.far(0.04, loss=0.02), pod.slow("1mbit"):
        run = launched(lab, "print('done')\n")
        ended = wait(lab, run, lambda row: row["state"] in ("succeeded", "failed"))
        assert ended["state"] == "succeeded", ended
        assert lab.orch("logs", run).out == "done\n"
