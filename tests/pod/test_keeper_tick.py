"""One tick of the keeper over a home that holds ruins: what is wrong with one run harms no other.

The tick is the real one, over real files. No run here has a Python that could run Ray, so none is started; that a tick
got through is seen by what it does for the good run: it answers its dump request.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.supervisor.lastword import LIVES
from pods.keeper import policy
from pods.keeper.client import KeeperClient, ensure_keeper, running, sound
from pods.keeper.keeper import Keeper
from pods.keeper.pythons import Candidate, Pythons, candidates
from pods.keeper.raynode import RayNode
from pods.remote.observe import asleep, keeper_words
from pods.tree import ensure_tree
from tests.lab.endhome import end_home
from tests.supervisor.runs import ROOT, make_run, request
from workloads.contract.errors import RemoteError
from workloads.contract.files import atomic_write_json, read_json, try_read_json
from workloads.contract.process import ProcId
from workloads.contract.records import NO_SUPERVISOR
from workloads.contract.rundir import OrchHome, RunDir

NO_SUCH_RAY = {"orch": "0.1.0", "ray": "0.0.1"}
BASE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    return OrchHome(tmp_path)


def change(run: RunDir, **fields: object) -> None:
    atomic_write_json(run.run_json, read_json(run.run_json) | fields)


def with_python(run: RunDir, python: str, **fields: object) -> RunDir:
    """The run as it was launched with `python`, and with a Ray that nobody has."""
    pod = read_json(run.run_json)["pods"][0] | {"python": python, "orch_python": python}
    change(run, pods=[pod], versions=NO_SUCH_RAY, **fields)
    return run


def ruin(home: OrchHome, name: str = "ruin", **fields: object) -> RunDir:
    return with_python(make_run(home, ["true"], name), f"{home.path}/gone/bin/python", **fields)


def ticked(home: OrchHome, good: RunDir) -> Keeper:
    """A keeper after three ticks, in which it must have answered a dump request of the good run."""
    asked = request(good, "dump")
    keeper = Keeper(home)
    for _ in range(3):
        keeper.tick(time.monotonic())
    deadline = time.monotonic() + 60
    while not RunDir.ack_of(asked).exists() and time.monotonic() < deadline:
        keeper.tick(time.monotonic())
        time.sleep(0.02)
    assert "no living rank" in read_json(RunDir.ack_of(asked))["why"]
    return keeper


def torn(run: RunDir) -> None:
    run.run_json.write_text("{torn")


def no_pods(run: RunDir) -> None:
    change(run, pods=[])


def pods_of_words(run: RunDir) -> None:
    change(run, pods=["local"], created=10**400)


def an_odd_attempt(run: RunDir) -> None:
    (run.ranks / "a²").mkdir()


def a_record_that_is_none(run: RunDir) -> None:
    run.attempt_dir(1).mkdir()
    run.rank_record(1, 0).write_text('{"shim_pid": 1e400, "pid": NaN, "start_time": [], "boot_id": {}}')
    run.rank_lock(1, 0).mkdir()


def a_record_that_cannot_be_finished(run: RunDir) -> None:
    run.attempt_dir(1).mkdir()
    run.rank_record(1, 0).write_text('{"rank": 0, "ts": NaN, "boot_id": "another"}')


def a_folder_for_submissions(run: RunDir) -> None:
    run.submissions.mkdir()


def a_cluster_that_leaves_its_folder(run: RunDir) -> None:
    change(run, cluster="../../etc")


RUINS = [torn, no_pods, pods_of_words, an_odd_attempt, a_record_that_is_none, a_record_that_cannot_be_finished,
         a_folder_for_submissions, a_cluster_that_leaves_its_folder]  # fmt: skip


@pytest.mark.parametrize("break_it", RUINS, ids=lambda f: f.__name__)
def test_a_ruin_harms_no_other_run(home: OrchHome, break_it: Callable[[RunDir], None]) -> None:
    broken, good = ruin(home), ruin(home, "good")
    break_it(broken)
    keeper = ticked(home, good)
    assert "" not in keeper.troubles.view(), "the look itself got through"
    assert f"{home.path}/gone/bin/python is gone" in keeper.troubles.view()[good.run_id]["what"]


def test_a_record_that_cannot_be_written_is_its_runs_trouble_and_is_told(home: OrchHome) -> None:
    broken, good = ruin(home), ruin(home, "good")
    a_record_that_cannot_be_finished(broken)
    keeper = ticked(home, good)
    open_ = keeper.troubles._open[broken.run_id, "looking after its ranks"]
    assert "JSON" in open_.what and open_.times >= 3 and "" not in keeper.troubles.view()


def test_a_run_directory_that_goes_away_between_two_looks(home: OrchHome) -> None:
    broken, good = ruin(home), ruin(home, "good")
    keeper = ticked(home, good)
    assert broken.run_id in keeper.runs.watches
    broken.path.rename(home.path / "elsewhere")
    keeper.tick(time.monotonic())
    assert set(keeper.runs.watches) == {good.run_id} == set(keeper.troubles.view())


def test_what_a_copied_home_holds_is_left_to_the_other_one(tmp_path: Path) -> None:
    there, here = OrchHome(tmp_path / "there"), OrchHome(tmp_path / "here")
    theirs = ruin(there)
    (here.runs / theirs.run_id).parent.mkdir(parents=True)
    theirs.path.rename(here.runs / theirs.run_id)
    (tmp_path / "link").symlink_to(here.path)
    linked = ruin(OrchHome(tmp_path / "link"), "linked")
    good = ruin(here, "good")
    keeper = ticked(here, good)
    assert set(keeper.runs.watches) == {good.run_id, linked.run_id}
    assert f"belongs to the home {there.path}" in keeper.troubles.view()[theirs.run_id]["what"]


@pytest.mark.parametrize(
    "record",
    [
        {"pid": 1, "start_time": 1, "boot_id": "x"},
        {**ProcId.me().__dict__, "generation": "g"},
        {**ProcId.me().__dict__, "generation": "g", "ports": {"dashboard": "8265"}},
        {**ProcId.me().__dict__, "generation": ["g"], "ports": {"dashboard": 8265}},
    ],
)
def test_a_record_of_ray_that_is_none_is_not_adopted(home: OrchHome, record: dict[str, object]) -> None:
    good = ruin(home, "good")
    folder = home.cluster(str(read_json(good.run_json)["cluster"]))
    folder.mkdir(parents=True)
    atomic_write_json(folder / "node.json", record)
    (folder / "token").write_bytes(b"\xff\nno token\r\n")
    keeper = ticked(home, good)
    assert "" not in keeper.troubles.view() and keeper.ray()["state"] == "down"


def test_a_token_that_is_none_asks_nobody(home: OrchHome) -> None:
    """A header must not be made of it."""
    said: list[str] = []
    node = RayNode(home, "c1", "local", list, said.append)
    node.folder.mkdir(parents=True)
    (node.folder / "token").write_bytes(b"x\r\nHost: elsewhere")
    node._record = {"ports": {"dashboard": 1}}
    assert node.api().token == "" and not node.api().alive()


# what nobody can supervise


def given_up(home: OrchHome, run: RunDir) -> dict[str, object]:
    """Its status after a keeper could start no supervisor for it for long enough."""
    keeper, now = Keeper(home), time.monotonic()
    keeper.tick(now)
    assert not run.status.exists() or read_json(run.status)["state"] not in ("failed", "halted", "succeeded")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        keeper.tick(now + policy.STRANDED_S + 1.0)
        status = try_read_json(run.status) or {}
        if status.get("state") in ("failed", "halted", "succeeded"):
            return status
        time.sleep(0.1)
    raise AssertionError(run.supervisor_log.read_text())


def test_a_run_without_a_python_for_its_supervisor_fails_with_the_reason(home: OrchHome) -> None:
    run = ruin(home)
    status = given_up(home, run)
    assert status["state"] == "failed"
    assert f"{NO_SUPERVISOR}: no Python here can run Ray: {home.path}/gone/bin/python is gone" in str(status["reason"])
    rows = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [r["to"] for r in rows if r["what"] == "state"] == ["queued", "failed"]
    keeper = Keeper(home)
    keeper.tick(time.monotonic())
    assert not list(keeper.runs.active()), "it is over"


def test_a_run_whose_orch_is_gone_fails_with_the_reason(home: OrchHome) -> None:
    run = make_run(home, ["true"], tree=f"{home.trees}/feed")
    assert f"own files that it was launched with are gone: {home.trees}/feed" in str(given_up(home, run)["reason"])


def test_a_halt_that_was_asked_for_is_a_halt(home: OrchHome) -> None:
    run = ruin(home)
    asked = request(run, "halt", why="enough")
    status = given_up(home, run)
    assert (status["state"], status["reason"]) == ("halted", "halted by test: enough (while queued)")
    assert read_json(RunDir.ack_of(asked))["ok"] is True


def test_a_resume_of_one_is_refused_and_it_stays_as_it_was(home: OrchHome) -> None:
    run = ruin(home)
    event = {"v": 1, "seq": 0, "ts": 1.0, "attempt": 1, "who": "supervisor", "what": "state", "why": "", "data": {}}
    run.events.write_text(json.dumps(event | {"to": "halted"}) + "\n")
    atomic_write_json(run.status, {"v": 1, "run": run.run_id, "state": "halted"})
    asked, keeper, now = request(run, "resume"), Keeper(home), time.monotonic()
    keeper.tick(now)
    deadline = time.monotonic() + 60
    while not RunDir.ack_of(asked).exists() and time.monotonic() < deadline:
        keeper.tick(now + policy.STRANDED_S + 1.0)
        time.sleep(0.1)
    ack = read_json(RunDir.ack_of(asked))
    assert ack["ok"] is False and "is gone" in ack["why"] and read_json(run.status)["state"] == "halted"


def test_with_a_process_of_the_run_alive_nothing_is_said(home: OrchHome) -> None:
    run = ruin(home)
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    living = subprocess.Popen(argv, env=os.environ | {"ORCH_MARK": f"{run.run_id}/a1/r0"})
    try:
        argv = [sys.executable, "-m", "orchestrator.supervisor.lastword", str(run.path), "x"]
        assert subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == LIVES
        assert not run.status.exists() and not run.events.exists()
    finally:
        living.kill()
        living.wait()


def test_ranks_that_ended_well_without_anybody_are_a_success(home: OrchHome) -> None:
    run = ruin(home)
    event = {"v": 1, "seq": 0, "ts": 1.0, "attempt": 1, "who": "supervisor", "what": "state", "why": "", "data": {}}
    run.events.write_text(json.dumps(event | {"to": "running"}) + "\n")
    atomic_write_json(run.status, {"v": 1, "run": run.run_id, "state": "running"})
    run.attempt_dir(1).mkdir()
    born = {"v": 1, "run": run.run_id, "attempt": 1, "rank": 0, "pod": "local", "shim_pid": 2, "shim_start_time": 1}
    born |= {"boot_id": "x", "command": [], "ts": 1.0, "pid": 3, "start_time": 1}
    atomic_write_json(run.rank_record(1, 0), born | {"ended": 2.0, "exit_code": 0, "cause": "exited"})
    assert given_up(home, run)["state"] == "succeeded"


# which Python


def stub(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o700)
    return str(path)


def test_what_is_wrong_with_a_python_is_said(tmp_path: Path) -> None:
    pythons, gone = Pythons(), str(tmp_path / "gone")
    without = stub(tmp_path / "without", f'exec {BASE} -S "$@"')
    broken = stub(tmp_path / "broken", "echo 'No module named encodings' >&2; exit 1")
    assert pythons.problem(Candidate(gone)) == "is gone"
    assert pythons.problem(Candidate(str(tmp_path))) == "is gone"
    assert pythons.problem(Candidate(without)) == "has no Ray"
    assert pythons.problem(Candidate(broken)) == "does not work: No module named encodings"
    (tmp_path / "text").write_text("x")
    assert pythons.problem(Candidate(str(tmp_path / "text"))).startswith("does not start: ")
    with pytest.raises(LookupError, match=r"gone is gone; .*without has no Ray; .*broken does not work"):
        pythons.fit([Candidate(gone), Candidate(without), Candidate(broken)])


def test_the_first_that_is_fit_is_taken_and_another_ray_only_where_it_is_the_runs_own(tmp_path: Path) -> None:
    pythons = Pythons()
    two, three = (stub(tmp_path / v, f"echo ray={v}") for v in ("2.0", "3.0"))
    own = [Candidate(str(tmp_path / "gone")), Candidate(two), Candidate(three, "2.0")]
    assert pythons.fit(own) == [two]
    assert pythons.fit([Candidate(three)]) == [three]
    Path(two).unlink()
    with pytest.raises(LookupError, match=r"3.0 has Ray 3.0, not 2.0"):
        pythons.fit(own)
    stub(tmp_path / "2.0", "echo ray=2.1")
    assert pythons.fit(own) == [two], "what is made anew is asked anew"


def test_candidates_are_the_waiting_runs_then_the_keeper_then_the_others() -> None:
    def spec(python: object, ray: object = "2.0") -> dict[str, object]:
        return {"pods": [{"python": "/ranks", "orch_python": python}], "versions": {"ray": ray}}

    found = candidates([spec("/a"), spec(None), {"pods": []}], [spec("/b"), spec("/a"), {"versions": 7}])
    assert found == [
        Candidate("/a"), Candidate("/ranks"), Candidate(sys.executable, "2.0"), Candidate("/b", "2.0")
    ]  # fmt: skip
    assert candidates([spec("/a", "none")], []) == [Candidate("/a"), Candidate(sys.executable)]


# what a person sees


def test_a_keeper_that_cannot_start_ray_says_why_to_whoever_asks(home: OrchHome) -> None:
    """The keeper's own process, asked as `orch status` does."""
    waits = ruin(home)
    begun = ruin(home, "begun")
    status = {"v": 1, "run": begun.run_id, "state": "running"}
    atomic_write_json(begun.status, status)
    copied = ruin(home, "copied")
    pods = read_json(copied.run_json)["pods"]
    change(copied, pods=[pods[0] | {"root": "/elsewhere"}])
    ensure_keeper(home, sys.executable, ensure_tree(home)).poke()
    try:
        words, deadline = "", time.monotonic() + 60
        while "trouble" not in words and time.monotonic() < deadline:
            time.sleep(0.1)
            words = keeper_words(home, waits, time.time())
        assert f"no Python here can run Ray: {home.path}/gone/bin/python is gone" in words
        assert "is gone" in (asleep(home, begun, status, time.time()) or ""), "also once it had a supervisor"
        assert asleep(home, begun, status | {"state": "failed"}, time.time()) is None
        assert "belongs to the home /elsewhere" in keeper_words(home, copied, time.time())
        assert KeeperClient(home).work()["look_age_s"] < 60
        log = home.keeper_log.read_text()
        assert "a tick failed" not in log and log.count("belongs to the home") == 1, "said once, not at each look"
    finally:
        end_home(home)


def test_a_keeper_whose_record_was_lost_is_found_again(home: OrchHome) -> None:
    ensure_keeper(home, sys.executable, ensure_tree(home))
    first = read_json(home.keeper_record)
    try:
        for damage in ("{torn", '{"pid": 1, "start_time": 1, "boot_id": "x", "socket": "/tmp/elsewhere"}', None):
            if damage is None:
                home.keeper_record.unlink()
            else:
                home.keeper_record.write_text(damage)
            deadline = time.monotonic() + 60
            while running(home) != first and time.monotonic() < deadline:
                time.sleep(0.05)
            assert running(home) == first
    finally:
        end_home(home)


def test_a_keeper_whose_own_python_was_deleted_starts_shims_until_one_that_is_sound_takes_over(tmp_path: Path) -> None:
    home = OrchHome(tmp_path / "home")
    own = tmp_path / "venv"
    venv.create(own, symlinks=True, with_pip=False)
    tree = ensure_tree(home)
    ensure_keeper(home, str(own / "bin" / "python"), tree)
    old = read_json(home.keeper_record)
    try:
        assert sound(home) is not None
        shutil.rmtree(own)
        assert sound(home) is None and running(home) is not None, "it lives on"
        run = make_run(home, ["true"], tree=str(tree))
        run.attempt_dir(1).mkdir()
        order = run.rank_order(1, 0)
        atomic_write_json(order, {"run": run.run_id, "rank": 0, "attempt": 1})
        assert KeeperClient(home).spawn(order)["started"] is True, "with the Python that its environment was made from"
        ensure_keeper(home, str(own / "bin" / "python"), tree)
        assert running(home) == old, "there is nothing better to replace it by"
        ensure_keeper(home, sys.executable, tree)
        assert sound(home) is not None and read_json(home.keeper_record)["pid"] != old["pid"]
    finally:
        end_home(home)


def test_why_a_keeper_does_not_start_is_told(home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    home.keeper_lock.mkdir(parents=True)
    monkeypatch.setattr("pods.keeper.client.START_TIMEOUT_S", 1.0)
    tree, deadline, told = ensure_tree(home), time.monotonic() + 60, ""
    while "Is a directory" not in told and time.monotonic() < deadline:
        with pytest.raises(RemoteError) as caught:
            ensure_keeper(home, sys.executable, tree)
        told = str(caught.value.value)
    assert "Is a directory" in told and "keeper.lock" in told


def test_what_speaks_for_a_run_that_nobody_can_supervise_needs_the_standard_library_alone() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import orchestrator.supervisor.lastword"
    assert subprocess.run([BASE, "-I", "-S", "-c", code], check=False).returncode == 0


def test_a_keeper_that_hangs_in_a_look_is_told(home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = ruin(home)
    monkeypatch.setattr("pods.remote.observe.running", lambda _: {"pid": os.getpid()})
    told = {"ray": {"state": "down"}, "troubles": {}, "look_age_s": 300.0}
    monkeypatch.setattr(KeeperClient, "work", lambda *_: json.loads(json.dumps(told)))
    assert "has not come to an end with its look at the runs for 300 s" in keeper_words(home, waits, time.time())
    told |= {"look_age_s": 0.1, "ray": {"state": "up", "cluster": "another"}}
    assert "Ray serves runs of other pods" in keeper_words(home, waits, time.time())
