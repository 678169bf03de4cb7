"""`orch resume --checkpoint`: what is refused, what the supervisor sets aside and when, and what ranks go on from."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.whywork import _since_rewind
from orchestrator.supervisor import rewind
from pods.remote import control
from tests.checkpoints.killer import NEW, NEWEST, OLD, flip
from tests.checkpoints.saver import checkpointer, make_run, save
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run as make_submitted
from tests.supervisor.runs import request
from workloads.contract.errors import ConflictError, IntegrityError, LocalError, OrchError, SpecError
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.manifest import committed, verify
from workloads.contract.records import REWIND, Event
from workloads.contract.rundir import OrchHome, RunDir
from workloads.runtime.newest import choose

NAMES = [f"step_{step:08d}" for step in (OLD, NEWEST, NEW)]


def filled(run: RunDir) -> None:
    run.epoch.write_text("1\n")
    saver = checkpointer(run, keep=3)
    assert all(save(saver, step) for step in (OLD, NEWEST, NEW))


def names(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir() if p.is_dir())


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path / "home" / "runs")
    filled(made)
    tree = tmp_path / "tree"
    (tree / control.REWINDS).parent.mkdir(parents=True)
    (tree / control.REWINDS).touch()
    atomic_write_json(made.run_json, {"kind": "train", "tree": str(tree)})
    atomic_write_json(made.status, {"state": "failed"})
    return made


# --- what is asked


def test_only_a_checkpoint_that_verifies_is_asked_for(run: RunDir) -> None:
    def refused(name: str) -> OrchError:
        with pytest.raises(OrchError) as e:
            control.resume(run, who="ada", why="", checkpoint=name)
        assert list(run.requests.iterdir()) == []
        return e.value

    other = refused("step_00000099")
    assert isinstance(other, SpecError) and other.expected == ", ".join(reversed(NAMES))
    flip(run.checkpoint(OLD) / "__0_1.bin")
    damaged = refused(NAMES[0])
    assert isinstance(damaged, IntegrityError) and "__0_1.bin does not match its sha256" in damaged.what
    (Path(read_json(run.run_json)["tree"]) / control.REWINDS).unlink()
    unable = refused(NAMES[1])
    assert isinstance(unable, LocalError) and str(unable.fix).endswith(f"--checkpoint {NAMES[1]} --code current")


def test_a_request_that_waits_for_another_checkpoint_is_not_taken_for_this_one(run: RunDir) -> None:
    asked = control.resume(run, who="ada", why="", checkpoint=NAMES[1])
    assert read_json(asked)["args"] == {"code": "run", "checkpoint": NAMES[1]}
    assert control.resume(run, who="ada", why="", checkpoint=NAMES[1]) == asked
    for other in (NAMES[0], None):
        with pytest.raises(ConflictError, match=NAMES[1]):
            control.resume(run, who="ada", why="", checkpoint=other)


# --- what is set aside


def test_set_aside_is_renamed_whole_and_never_over_another(run: RunDir) -> None:
    assert rewind.newer(run, NAMES[2]) == []
    newer = rewind.newer(run, NAMES[0])
    assert [p.name for p in newer] == [NAMES[2], NAMES[1]]
    run.aside_checkpoint(NAMES[2], 4).mkdir()
    rewind.set_aside(run, newer, 4)
    assert names(run) == [f"aside_{NAMES[1]}_a4", f"aside_{NAMES[2]}_a4", f"aside_{NAMES[2]}_a4_1", NAMES[0]]
    back = run.aside_checkpoint(NAMES[2], 4, 1).rename(run.checkpoint(NEW))
    assert verify(back) == [] and choose(checkpointer(run, 5)) == back
    with pytest.raises(LookupError, match=NAMES[1]):
        rewind.newer(run, NAMES[1])


def test_ranks_use_nothing_older_than_what_was_asked_for(run: RunDir) -> None:
    saver = checkpointer(run, 2)
    saver.env = replace(saver.env, resume_from=NAMES[1])
    rewind.set_aside(run, rewind.newer(run, NAMES[1]), 1)
    assert choose(saver) == run.checkpoint(NEWEST)
    flip(run.checkpoint(NEWEST) / "__0_0.bin")
    with pytest.raises(IntegrityError) as e:
        choose(saver)
    assert e.value.code == "E-TRAIN-025" and names(run)[-2:] == NAMES[:2]  # nothing was put away
    saver.env = replace(saver.env, resume_from=None)  # a plain resume of it
    assert choose(saver) == run.checkpoint(OLD)


# --- the supervisor

SHOW = "import os; print('from:', os.environ.get('ORCH_RESUME_FROM', '-'), flush=True); raise SystemExit(5)"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    home = OrchHome(tmp_path / "home")
    made = Desk(make_submitted(home, [sys.executable, "-c", SHOW], restart={"max": 0, "backoff_s": [0]}))
    filled(made.run)
    yield made
    made.close()


def told(desk: Desk, what: str) -> list[Any]:
    return [json.loads(line) for line in desk.run.events.read_text().splitlines() if json.loads(line)["what"] == what]


def notes(desk: Desk) -> list[str]:
    return [e["why"] for e in told(desk, "note") if "set aside" in e["why"]]


def test_newer_ones_are_set_aside_once_for_one_resume(desk: Desk) -> None:
    run = desk.run
    desk.until("failed")
    request(run, "resume", "one", args={"checkpoint": NAMES[1]})
    desk.until("failed", 2)
    assert names(run) == [f"aside_{NAMES[2]}_a1", *NAMES[:2]]
    assert notes(desk) == [f"set aside, for the run goes on from {NAMES[1]}: {NAMES[2]}"]
    assert [e["data"].get("checkpoint") for e in told(desk, "state") if e["to"] == "resuming"] == [NAMES[1]]
    shutil.copytree(run.aside_checkpoint(NAMES[2], 1), run.checkpoint(NEW))  # made again
    desk.again()
    request(run, "resume", "two")
    desk.until("failed", 3)
    assert names(run)[1:] == NAMES and len(notes(desk)) == 1
    shown = [line for line in run.rank_log(0).read_text().splitlines() if line.startswith("from:")]
    assert shown == ["from: -", f"from: {NAMES[1]}", "from: -"]


def test_a_supervisor_killed_before_the_attempt_sets_them_aside_when_it_is_back(desk: Desk) -> None:
    desk.until("failed")
    request(desk.run, "resume", "one", args={"checkpoint": NAMES[0]})
    desk.turn(lambda: desk.status.get("state") == "resuming")
    desk.again()
    assert desk.engine.journal.memory.rewind
    rewind.set_aside(desk.run, rewind.newer(desk.run, NAMES[0])[:1], 1)  # it had come so far
    desk.until("failed", 2)
    assert [p.name for p in committed(desk.run)] == [NAMES[0]] and len(names(desk.run)) == 3
    assert not desk.engine.journal.memory.rewind


def test_a_named_checkpoint_that_went_away_fails_the_run_and_moves_nothing(desk: Desk) -> None:
    desk.until("failed")
    shutil.rmtree(desk.run.checkpoint(NEWEST))
    request(desk.run, "resume", "one", args={"checkpoint": NAMES[1]})
    desk.turn(lambda: "not there any more" in str(desk.status.get("reason")))
    assert (desk.status["state"], desk.status["attempt"], names(desk.run)) == ("failed", 1, [NAMES[0], NAMES[2]])
    request(desk.run, "resume", "two", args={"checkpoint": "../step_00000010"})
    desk.turn(lambda: any("not the name of a checkpoint" in str(read_json(p)["why"])
                          for p in desk.run.requests.glob("*-two.ack.json")))  # fmt: skip


def test_steps_given_up_by_a_rewind_are_no_work_lost() -> None:
    def state(to: str, base: int) -> Event:
        return Event(0, 0.0, 1, "supervisor", "state", to=to, data={"base_step": base})

    note = Event(0, 0.0, 1, "supervisor", "note", "set aside", data={"once": f"{REWIND}a-request"})
    began = [state("starting", -1), note, state("preparing", 30), state("starting", 30)]
    for events, steps in (
        (began[:1] + began[2:], {30}), (began[:3], set()), (began, set()), ([*began, state("starting", 12)], {12}),
    ):  # fmt: skip
        kept = {e.data["base_step"] for e in _since_rewind(events) if e.to == "starting"} - {-1}
        assert kept == steps
