"""What a keeper reads from run directories: who needs a supervisor, which requests wait, whose code is run."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from orchestrator.supervisor import inbox
from pods.keeper.runs import Runs, Submission, lock_is_held, pending_requests, tree_of
from pods.keeper.troubles import Troubles
from workloads.contract.files import atomic_write_json
from workloads.contract.rundir import OrchHome, RunDir, make_run_id


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    return OrchHome(tmp_path)


def make_run(home: OrchHome, state: str | None = None, name: str = "a") -> RunDir:
    run = home.run(make_run_id(name))
    for folder in run.skeleton():
        folder.mkdir(parents=True)
    atomic_write_json(
        run.run_json, {"v": 1, "cluster": "c1", "pods": [{"name": "local"}], "tree": "/old", "created": 1}
    )
    if state:
        atomic_write_json(run.status, {"state": state})
    return run


def watch(home: OrchHome) -> tuple[Runs, list[str]]:
    lines: list[str] = []
    return Runs(home, Troubles(lines.append)), lines


def test_who_needs_a_supervisor(home: OrchHome) -> None:
    new, running, done = make_run(home), make_run(home, "running", "b"), make_run(home, "succeeded", "c")
    runs, _ = watch(home)
    needs = {r.run_id: r.needs_supervisor for r in runs.look(0.0)}
    assert needs == {new.run_id: True, running.run_id: True, done.run_id: False}


def test_an_unanswered_resume_wakes_an_ended_run_until_it_is_answered(home: OrchHome) -> None:
    run = make_run(home, "halted")
    runs, _ = watch(home)
    assert not runs.look(0.0)[0].needs_supervisor
    request = run.request("resume", "0001")
    atomic_write_json(request, {"verb": "resume"})
    seen = runs.look(1.0)[0]
    assert seen.needs_supervisor and seen.asked_again
    atomic_write_json(run.submissions, {"n": 2, "generation": "g", "mono": 1.0})
    atomic_write_json(run.status, {"state": "halted", "x": 1})
    seen = runs.look(2.0)[0]
    assert seen.needs_supervisor and not seen.asked_again and seen.submitted_to == "g"
    atomic_write_json(RunDir.ack_of(request), {"ok": False})
    assert not runs.look(3.0)[0].needs_supervisor


def test_a_held_lock_is_a_living_supervisor_and_a_free_one_ages(home: OrchHome) -> None:
    run = make_run(home, "running")
    runs, _ = watch(home)
    assert not lock_is_held(run.supervisor_lock)  # it is not even there
    fd = os.open(run.supervisor_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert runs.look(0.0)[0].supervised
    os.close(fd)
    assert [runs.look(t)[0].lock_free_s for t in (10.0, 14.0)] == [0.0, 4.0]


def test_a_run_directory_that_cannot_be_read_is_said_once_and_left_alone(home: OrchHome) -> None:
    make_run(home).run_json.write_text("{torn")
    (home.runs / "not a run").mkdir()
    runs, lines = watch(home)
    assert runs.look(0.0) == [] == runs.look(1.0)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("status.json", {"state": []}),
        ("run.json", {"cluster": "c1", "pods": [], "created": "yesterday"}),
        ("submissions.json", {"n": "x", "mono": [], "generation": 7, "taken": None}),
    ],
)
def test_foreign_values_do_not_end_a_look(home: OrchHome, name: str, row: dict[str, object]) -> None:
    run = make_run(home)
    atomic_write_json(run.path / name, row)
    make_run(home, "running", "b")
    runs, _ = watch(home)
    seen = {r.run_id: r for r in runs.look(0.0)}
    assert seen[run.run_id].needs_supervisor and seen[run.run_id].submitted_to is None
    assert Submission.read(run).n == 0


def test_a_submission_is_written_and_read_back(home: OrchHome) -> None:
    run = make_run(home)
    sent = Submission(3, True, "g1", 12.5, "")
    sent.write(run, "first submission")
    assert Submission.read(run) == sent


def test_only_unanswered_requests_of_the_verb_wait(home: OrchHome) -> None:
    run = make_run(home)
    first, second, other = run.request("dump", "1", 1.0), run.request("dump", "2", 2.0), run.request("halt", "3", 3.0)
    for path in (first, second, other, RunDir.ack_of(first)):
        atomic_write_json(path, {})
    assert pending_requests(run, "dump") == [second]


def test_what_a_sync_tool_leaves_beside_a_request_is_none(home: OrchHome) -> None:
    """What the supervisor does not take for a request nobody answers: it would hold the run up for ever."""
    run = make_run(home, "halted")
    home.tree("beef").mkdir(parents=True)
    request = run.request("resume", "0001")
    copy = request.with_name(f"{request.stem} (conflicted copy).json")
    atomic_write_json(copy, {"verb": "resume", "args": {"code": "current", "tree": str(home.tree("beef"))}})
    runs, _ = watch(home)
    assert not runs.look(0.0)[0].needs_supervisor
    assert pending_requests(run, "resume") == [] and inbox.pending(run, time.time() + 60.0) == ()
    assert tree_of(home, run, {"tree": "/old"}) == "/old"


def test_a_resume_with_todays_code_is_run_from_todays_tree(home: OrchHome) -> None:
    run = make_run(home)
    spec = {"tree": "/old"}
    assert tree_of(home, run, spec) == "/old"
    atomic_write_json(run.request("resume", "1", 1.0), {"args": {"code": "current", "tree": "/elsewhere"}})
    assert tree_of(home, run, spec) == "/old"  # a request cannot make the keeper run anything outside its own trees
    home.tree("beef").mkdir(parents=True)
    atomic_write_json(run.request("resume", "2", 2.0), {"args": {"code": "current", "tree": str(home.tree("beef"))}})
    atomic_write_json(run.request("resume", "3", 3.0), {"args": {"code": "run"}})
    assert tree_of(home, run, spec) == str(home.tree("beef"))
