"""Requests: what is written, what is left alone, what is refused."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pods.keeper.client import KeeperClient, running
from pods.keeper.runs import pending_requests
from pods.remote import control
from pods.remote.stage import ensure_home
from pods.tree import ensure_tree
from tests.jobs.conftest import content, set_state, staged_run
from workloads.contract.errors import ConflictError, LocalError
from workloads.contract.files import atomic_write_json
from workloads.contract.haltfile import Halt, read_halt
from workloads.contract.records import Ack, as_wire
from workloads.contract.rundir import OrchHome, RunDir


@pytest.fixture
def run(home: OrchHome, tmp_path: Path) -> RunDir:
    return staged_run(home, tmp_path)


def test_a_halt_is_a_request_and_a_file(run: RunDir) -> None:
    request = control.halt(run, now=False, why="dinner\n", who="ada@box")
    assert content(request)["verb"] == "halt" and content(request)["args"] == {"now": False}
    halt = read_halt(run)
    assert isinstance(halt, Halt) and not halt.now and halt.who == "ada@box" and "dinner" in halt.why
    assert request.parent == run.requests and request.stat().st_mode & 0o777 == 0o600


def test_a_second_halt_changes_nothing_but_may_be_urgent(run: RunDir) -> None:
    control.halt(run, now=False, why="first", who="ada")
    control.halt(run, now=False, why="second", who="bob")
    assert content(run.halt)["why"] == "first"
    control.halt(run, now=True, why="third", who="bob")
    assert content(run.halt)["now"] is True and content(run.halt)["why"] == "third"
    control.halt(run, now=False, why="fourth", who="bob")
    assert content(run.halt)["why"] == "third"
    assert len(list(run.requests.iterdir())) == 4


def test_a_halt_made_by_hand_stays_and_may_be_made_urgent(run: RunDir) -> None:
    run.halt.write_text("too hot in here")
    control.halt(run, now=False, why="", who="ada")
    assert run.halt.read_text() == "too hot in here"
    control.halt(run, now=True, why="", who="ada")
    assert content(run.halt)["now"] is True


def test_a_link_in_the_place_of_the_halt_is_replaced_and_not_followed(run: RunDir, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run.halt.symlink_to(victim)
    control.halt(run, now=False, why="x", who="ada")
    assert victim.read_text() == "mine" and isinstance(read_halt(run), Halt)


def test_a_directory_in_the_place_of_the_halt_is_told(run: RunDir) -> None:
    run.halt.mkdir()
    with pytest.raises(LocalError) as e:
        control.halt(run, now=False, why="x", who="ada")
    assert (e.value.code, e.value.where) == ("E-CTL-005", str(run.halt))
    assert e.value.fix is not None and e.value.fix.startswith(f"rm -r {run.halt}")
    assert [p.name for p in run.path.iterdir() if ".tmp." in p.name] == []


def test_dump_requests(run: RunDir) -> None:
    assert "ranks" not in content(control.dump(run, ranks=None, why="", who="ada")).get("args", {})  # type: ignore[operator]
    assert content(control.dump(run, ranks=[1, 3], why="", who="ada"))["args"] == {"ranks": [1, 3]}


@pytest.mark.parametrize("state", ["halted", "failed"])
def test_an_ended_run_is_resumed_once(run: RunDir, home: OrchHome, state: str) -> None:
    tree = Path(str(content(run.run_json)["tree"]))
    tree.mkdir(parents=True)
    set_state(run, state)
    request = control.resume(run, who="ada", why="again")
    assert content(request)["args"] == {"code": "run"}
    assert control.resume(run, who="ada", why="again") == request
    atomic_write_json(run.ack_of(request), as_wire(Ack(True, "supervisor", time.time())))
    assert control.resume(run, who="ada", why="and again") != request


@pytest.fixture
def waiting(run: RunDir, home: OrchHome) -> Path:
    """A plain request to resume that nobody has answered."""
    Path(str(content(run.run_json)["tree"])).mkdir(parents=True)
    set_state(run, "failed")
    return control.resume(run, who="ada", why="again")


def test_todays_code_takes_the_place_of_a_resume_that_waits(run: RunDir, home: OrchHome, waiting: Path) -> None:
    """The older code may be why nobody answers."""
    first, second = (home.tree(letter * 16) for letter in "ab")
    request = waiting
    for tree, allow in ((first, []), (second, []), (second, ["train.lr"])):
        older, request = request, control.resume(run, who="bob", why="", tree=tree, allow=allow)
        ack = control.wait_ack(older, timeout_s=0)
        assert request != older and ack is not None and not ack.ok and "took its place" in ack.why
        args = content(request)["args"]
        assert isinstance(args, dict) and args["tree"] == str(tree) and args.get("allow", []) == allow
        assert pending_requests(run, "resume") == [request]
        assert control.resume(run, who="bob", why="", tree=tree, allow=allow) == request


def test_what_a_waiting_resume_does_not_ask_for_is_refused_and_not_dropped(
    run: RunDir, home: OrchHome, waiting: Path
) -> None:
    with pytest.raises(ConflictError) as e:
        control.resume(run, who="bob", why="", allow=["train.lr"])
    assert e.value.code == "E-CTL-007" and "other fields that may differ" in e.value.what
    assert f"orch resume {run.run_id} --code current --allow-config-change=train.lr" in str(e.value.fix)
    current = control.resume(run, who="bob", why="", tree=home.tree("a" * 16), allow=["train.lr"])
    for tree, told in ((None, "other code and other fields"), (home.tree("b" * 16), "other code and other fields")):
        with pytest.raises(ConflictError) as e:
            control.resume(run, who="eve", why="", tree=tree)
        assert e.value.code == "E-CTL-007" and told in e.value.what and "took its place" not in str(e.value.fix)
    assert pending_requests(run, "resume") == [current]


def test_a_copy_that_a_sync_tool_left_is_not_the_same_request(run: RunDir, home: OrchHome) -> None:
    Path(str(content(run.run_json)["tree"])).mkdir(parents=True)
    set_state(run, "halted")
    first = control.resume(run, who="ada", why="again")
    atomic_write_json(run.ack_of(first), as_wire(Ack(True, "supervisor", time.time())))
    copy = first.with_name(f"{first.stem} (conflicted copy).json")
    copy.write_bytes(first.read_bytes())
    assert control.resume(run, who="ada", why="and again") not in (first, copy)


@pytest.mark.parametrize("state", [None, "queued", "running", "halting", "succeeded"])
def test_what_has_not_ended_or_succeeded_is_not_resumed(run: RunDir, state: str | None) -> None:
    if state:
        set_state(run, state)
    with pytest.raises(ConflictError) as e:
        control.resume(run, who="ada", why="")
    assert e.value.value == (state or "queued") and e.value.fix
    assert list(run.requests.iterdir()) == []


def test_resume_with_the_code_of_today_or_when_the_old_one_is_gone(run: RunDir, home: OrchHome) -> None:
    set_state(run, "failed")
    with pytest.raises(LocalError) as e:
        control.resume(run, who="ada", why="")
    assert e.value.fix == f"orch resume {run.run_id} --code current"
    args = content(control.resume(run, who="ada", why="", tree=ensure_tree(home)))["args"]
    assert isinstance(args, dict) and args["code"] == "current"
    assert (Path(args["tree"]) / "workloads" / "contract" / "rundir.py").is_file()
    assert Path(args["tree"]).parent == home.trees


def test_an_answer_is_waited_for_within_its_bound(run: RunDir) -> None:
    request = control.dump(run, ranks=None, why="", who="ada")
    began = time.monotonic()
    assert control.wait_ack(request, timeout_s=0.2, poll_s=0.05) is None
    assert 0.15 < time.monotonic() - began < 30
    ack = Ack(False, "keeper", 5.0, "no rank", {"notes": ["x"]})
    writer = threading.Timer(0.2, lambda: atomic_write_json(run.ack_of(request), as_wire(ack)))
    writer.start()
    assert control.wait_ack(request, timeout_s=10, poll_s=0.02) == ack
    writer.join()


@pytest.mark.parametrize("raw", [b"{}", b'{"ok":1,"ts":"x","data":[]}', b'{"ok":true,"ts":null,"why":5}'])
def test_a_foreign_answer_is_an_answer_and_no_exception(run: RunDir, raw: bytes) -> None:
    request = control.dump(run, ranks=None, why="", who="ada")
    run.ack_of(request).write_bytes(raw)
    ack = control.wait_ack(request, timeout_s=1)
    assert ack is not None and ack.ok is (b"true" in raw) and isinstance(ack.data, dict)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_directory_that_may_not_be_written_to_is_told(run: RunDir) -> None:
    run.requests.chmod(0o500)
    with pytest.raises(LocalError):
        control.halt(run, now=False, why="", who="ada")


def own_parts(home: OrchHome) -> Callable[[], tuple[str, Path]]:
    return lambda: (sys.executable, ensure_tree(home))


def test_waking_starts_a_keeper_from_the_code_of_the_newest_run(run: RunDir, home: OrchHome) -> None:
    set_state(run, "succeeded")
    control.wake(home, own_parts(home))  # the run's tree is not there: this process's own is taken
    record = running(home)
    assert record is not None and Path(str(record["tree"])).is_dir()
    control.wake(home, own_parts(home))
    again = running(home)
    assert again is not None and again["pid"] == record["pid"]
    KeeperClient(home).down()


def test_waking_an_empty_home(tmp_path: Path, home: OrchHome) -> None:
    ensure_home(home)
    control.wake(home, own_parts(home))
    assert running(home) is not None
    KeeperClient(home).down()
