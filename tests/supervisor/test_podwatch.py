"""The look at a pod: it never blocks, what it saw grows old, and a pod that is silent has no dead ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.health.facts import GpuFacts, PodFacts, ProcessState, RankFacts
from orchestrator.supervisor.gang import RayGang
from orchestrator.supervisor.podwatch import PodWatch, facts_of
from orchestrator.supervisor.seen import RankPhase, RankSeen
from orchestrator.supervisor.spec import parse_spec
from tests.supervisor.runs import make_run, run_row
from workloads.contract.beats import Beat
from workloads.contract.files import atomic_write_json
from workloads.contract.rundir import OrchHome, RunDir
from workloads.contract.states import Phase


class Probe:
    """Looks when it may; the third look hangs."""

    made: list[Sequence[str]]

    def __init__(self, run: RunDir, gpus: Sequence[str]) -> None:
        self.gate = threading.Event()
        self.looks = 0
        Probe.made.append(gpus)

    def look(self, now: float) -> dict[str, Any]:
        self.looks += 1
        if self.looks == 3:
            self.gate.wait(timeout=120)
        if self.looks == 2:
            raise OSError("no such disk")
        return {"disk_free_bytes": self.looks, "gpus": [{"uuid": "GPU-1", "present": False, "new": 1}], "else": 2}


def settled(watch: PodWatch, attempt: int, now: float) -> PodFacts:
    watch.look(attempt, now)
    assert watch._thread is not None
    watch._thread.join(60)
    return watch.look(attempt, now)


def test_a_look_that_hangs_or_fails_only_makes_what_is_known_older(tmp_path: Path) -> None:
    Probe.made = []
    run = make_run(OrchHome(tmp_path), ["x"])
    run.attempt_dir(1).mkdir()
    atomic_write_json(run.rank_order(1, 0), {"devices": ["GPU-1"]})
    watch = PodWatch(run, "local", (0,), make=Probe, every_s=3.0)
    first = settled(watch, 1, 100.0)
    assert (first.age_s, first.disk_free_bytes, first.gpus) == (0.0, 1, (GpuFacts("GPU-1", present=False),))
    assert Probe.made == [["GPU-1"]]
    assert settled(watch, 1, 103.0).age_s == 3.0  # it failed
    for now in (106.0, 110.0, 160.0):  # it hangs, and is not asked twice
        began = time.monotonic()
        old = watch.look(1, now)
        assert (old.age_s, old.disk_free_bytes) == (now - 100.0, 1) and time.monotonic() - began < 30
    probe = watch._probe
    assert isinstance(probe, Probe) and probe.looks == 3
    probe.gate.set()
    assert watch._thread is not None
    watch._thread.join(60)
    assert watch.look(1, 107.0).age_s == 1.0


def test_rows_of_a_probe_become_facts() -> None:
    row = {"pod": "other", "age_s": 9, "writable": True, "gpus": [{"uuid": "GPU-1", "xids": [79]}], "unknown": 1}
    assert facts_of("a", row) == PodFacts("a", writable=True, gpus=(GpuFacts("GPU-1", xids=(79,)),))


def test_an_agent_that_does_not_answer_grows_old_and_its_ranks_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = run_row(OrchHome(tmp_path), "sup-20261121T093000Z-1f3a", ["x"], world=2)
    pod = row["pods"][0]
    row["pods"] = [{**pod, "ranks": [0]}, {**pod, "name": "far", "ranks": [1]}]
    gang = RayGang(parse_spec(row), RunDir(tmp_path))
    beat = Beat(0, 1.0, Phase.PROGRESS, 1, 2, 1)
    seen = RankSeen(1, "far", RankPhase.ALIVE)
    facts = RankFacts(1, "far", ProcessState.RUNNING, (beat,))
    answers: list[Any] = [([seen], None, 5, [facts], PodFacts("far", age_s=1.0))]

    def ask(pod: object, method: str, *args: object, **kwargs: object) -> Any:
        if not answers:
            raise TimeoutError
        return answers.pop()

    monkeypatch.setattr(gang, "_ask", ask)
    now = time.monotonic()
    assert gang.ranks(1)[0][1] == seen
    ranks, pods = gang.health(now)
    assert ranks[1] == facts and pods[1].age_s == pytest.approx(1.0, abs=0.5)
    assert gang.ranks(1)[0][1].phase == RankPhase.UNKNOWN
    ranks, pods = gang.health(now + 40.0)
    assert ranks[1] == RankFacts(1, "far", ProcessState.UNKNOWN) and pods[1].age_s == pytest.approx(41.0, abs=0.5)
