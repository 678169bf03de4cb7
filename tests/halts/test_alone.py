"""A halt with everything dead that is not the rank's own shim: Ray, supervisor and keeper. The state follows."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from pods.keeper.client import running
from tests.halts.full import RANK, roster
from tests.local.conftest import Orch, make_orch
from workloads.contract.process import ProcId, marked

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture
def orch() -> Iterator[Orch]:
    made = make_orch()
    yield made
    made.remove()


def until(condition: Callable[[], object], limit_s: float, story: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, story()
        time.sleep(0.1)


def test_the_shim_alone_obeys_and_orch_halt_says_what_is_true(orch: Orch) -> None:
    script = f'exec {sys.executable} -I -S {RANK} bare "$ORCH_RUN_DIR"'
    run = orch.home.run(json.loads(orch("launch", "--json", "--name", "alone", "--", "sh", "-c", script))["run"])
    until(lambda: len(roster(run)) >= 2 and orch.state(run) == "running", 600, lambda: orch.story(run))
    keeper = running(orch.home)
    assert keeper is not None
    ProcId(keeper["pid"], keeper["start_time"], keeper["boot_id"]).signal(9)
    cluster = next((orch.home.path / "ray").iterdir()).name
    for ident in marked(cluster, "ORCH_CLUSTER"):
        ident.signal(9)
    assert any(p.alive() for p in roster(run)), "the rank goes on"
    run.halt.touch()
    until(lambda: not any(p.alive() for p in roster(run)), 600, lambda: orch.story(run))
    assert orch.state(run) == "running"  # nobody is there to say otherwise; nothing pretends to
    told = json.loads(orch("halt", run.run_id, "--json"))["runs"][0]
    assert [r["outcome"] for r in told["ranks"]] == ["killed by signal 15"]
    assert (told["state"], told["confirmed"]) in (("halted", True), ("running", False)), told
    orch.wait(run, "halted", timeout_s=600)  # any contact starts the keeper, the keeper Ray, and Ray a supervisor
    verdicts = [json.loads(e)["why"] for e in run.events.read_text().splitlines() if '"what":"verdict"' in e]
    assert verdicts == ["clean"]
    again = json.loads(orch("halt", run.run_id, "--json"))["runs"][0]
    assert (again["state"], again["confirmed"]) == ("halted", True)
