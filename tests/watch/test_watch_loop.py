"""`orch watch` on real run directories: the real command, and a pod that is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from orchestrator.cli.watch import watch
from orchestrator.runs.watchbeat import Beat, unwatched_since
from orchestrator.runs.watcheyes import PodEye, wait_all
from orchestrator.runs.watchloop import Watch
from pods.pod import FarPod
from pods.transport.local import LocalTransport
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import UnreachableError, UsageError
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.rundir import utc_stamp


def until(condition, limit_s=180.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def running(made, **more):
    made.status("running", "all ranks beat", supervisor=made.supervised(), **more)
    for rank in range(made.world):
        made.record(rank)
        made.beat(rank, time.time(), step=7, steps=100, loss=1.5)
    return made


def failed(made, *, seq=2, attempt=1):
    """Rank 0 was killed, long enough ago."""
    fall = "rank 0 was killed by signal 9 (SIGKILL) at step 7"
    made.event(seq, "rank-exit", fall, attempt=attempt, data={"rank": 0, "signal": 9, "cause": "signalled"})
    made.event(seq + 1, "state", fall, attempt=attempt, frm="running", to="failed")
    made.status("failed", fall, ts=time.time() - 100, attempt=attempt)


class Watched:
    """`orch watch` as a process, and the lines that it has said."""

    def __init__(self, orch, *args):
        self.process = orch.start("watch", *args)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, words):
        until(lambda: any(words in line for line in self.lines))


def test_it_tells_what_changes_and_ends_with_the_run(orch, make, home):
    made = running(make())
    made.event(0, "state", "the first step was made", frm="starting", to="running")
    watched = Watched(orch, made.run.run_id)
    watched.said("running, step 7/100, loss 1.5")
    made.event(1, "health", "rank 1 has made no step for 30 s (limit 30 s)\x1b[2J",
               data={"rule": "no_step", "rung": "dump", "rank": 1})  # fmt: skip
    watched.said("no_step [dump]: rank 1 has made no step for 30 s (limit 30 s)\\x1b[2J")
    assert try_read_json(home.watches / f"{watched.process.pid}.json")["about"] == [made.run.run_id]
    failed(made)
    watched.said("running -> failed")
    assert watched.process.wait(60) == 1
    assert not any("\x1b" in line for line in watched.lines)
    assert list(home.watches.iterdir()) == []


def test_once_says_how_all_stand(orch, make):
    well = running(make("well"))
    ran = orch("watch", "--once", "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0 and [r["kind"] for r in rows] == ["first"] and rows[0]["run"] == well.run.run_id
    well.event(5, "health", "rank 1 is slow", data={"rule": "slow", "rung": "note", "rank": 1})
    assert orch("watch", "--once").code == 1  # sick
    failed(running(make("bad")))
    assert "failed" not in orch("watch", "--once").out  # it had ended before
    assert orch("watch", "--once", "bad").code == 1


def test_once_a_run_that_a_rule_halted_is_no_well_one(orch, make):
    for name, who, code in (("nan", "watchdog", 1), ("left", "ada@home", 0), ("script", "a file", 1)):
        made = running(make(name))
        made.event(1, "halt", f"halted by {who}", data={"who": who, "now": False, "ts": 1.0})
        made.event(2, "state", f"halted by {who}", frm="halting", to="halted")
        made.status("halted", f"halted by {who}", ts=time.time() - 100)
        if name == "script":
            assert orch("watch", "--once", name).code == 0  # somebody's own `.HALT`
            made.run.anomaly_type.write_text("nan")
        assert orch("watch", "--once", name).code == code, who


def test_killed_or_stopped_it_changes_nothing_and_status_says_so(orch, make, home):
    made = running(make())
    before = {p.name: p.read_bytes() for p in made.run.path.rglob("*") if p.is_file()}
    watched = Watched(orch, "tiny")
    watched.said("running")
    row = home.watches / f"{watched.process.pid}.json"
    until(row.exists)
    assert unwatched_since(home, time.time()) is None
    watched.process.send_signal(signal.SIGSTOP)
    asleep = time.time() + 3600.0
    assert unwatched_since(home, asleep) == pytest.approx(time.time(), abs=300)
    watched.process.kill()
    watched.process.wait(timeout=120)
    ts = try_read_json(row)["ts"]
    assert unwatched_since(home, time.time()) == ts
    assert "note: unwatched since" in orch("status").err
    assert {p.name: p.read_bytes() for p in made.run.path.rglob("*") if p.is_file()} == before
    Beat(home, ["all"]).beat()
    assert not row.exists() and unwatched_since(home, time.time()) is None  # another one looks now


def test_no_watch_no_word(orch, make, home):
    running(make())
    assert "unwatched" not in orch("status").err and unwatched_since(home, time.time()) is None


@pytest.mark.long
def test_ctrl_c_is_an_end_on_purpose_and_sigterm_is_none(orch, make, home):
    running(make())
    for number, left in ((signal.SIGINT, 0), (signal.SIGTERM, 1)):
        watched = Watched(orch)
        watched.said("running")
        until(lambda pid=watched.process.pid: (home.watches / f"{pid}.json").exists())
        watched.process.send_signal(number)
        assert watched.process.wait(60) == 0
        assert len(list(home.watches.iterdir())) == left


def test_a_run_that_a_signal_killed_is_resumed_once(make, home):
    made = running(make())
    said = []
    looker = Watch(home, said.append, frozenset({made.run.run_id}), auto_resume=True)
    looker.look()
    failed(made)
    looker.look()
    until(lambda: any(made.run.requests.glob("*.json")))
    (path,) = made.run.requests.glob("*.json")
    until(lambda: not looker._notes.empty())
    looker.look()
    assert [c.kind for c in said] == ["first", "rank-exit", "state", "resume"] and not looker.over
    request = json.loads(path.read_text())
    assert (request["verb"], request["who"], request["args"]) == ("resume", "orch watch", {"code": "run"})
    assert request["why"].endswith("(resume 1 of 3 without a new step)")
    looker.look()
    assert list(made.run.requests.iterdir()) == [path]


@pytest.mark.long
def test_the_command_resumes_and_notifies(orch, make, tmp_path):
    made = running(make())
    told = tmp_path / "told"
    watched = Watched(orch, "--auto-resume", "--notify", f"sh -c 'cat >> {told}'")
    watched.said("running")
    failed(made)
    watched.said("asked to resume: rank 0 was killed by signal 9 (SIGKILL) at step 7 (resume 1 of 3")
    until(lambda: told.exists() and '"resume"' in told.read_text())
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    assert [r["kind"] for r in rows] == ["rank-exit", "state", "resume"] and rows[1]["state"] == "failed"
    watched.process.send_signal(signal.SIGINT)
    assert watched.process.wait(60) == 0


@pytest.mark.parametrize("how", ["file", "request"])
def test_what_a_person_stopped_stays_stopped(make, home, how):
    made = running(make())
    made.event(0, "state", "attempt 1", to="starting")
    failed(made)
    if how == "file":
        made.run.halt.write_text("enough")
    else:
        atomic_write_json(made.run.requests / f"{utc_stamp(time.time() + 1)}-halt-ab12.json", {"verb": "halt"})
    said = []
    looker = Watch(home, said.append, frozenset({made.run.run_id}), auto_resume=True)
    for _ in range(3):
        looker.look()
    assert [c.kind for c in said if c.kind == "resume"] == [] and looker.over
    assert not any("resume" in p.name for p in made.run.requests.iterdir())
    if how == "request":
        assert any("a person asked it to halt" in c.text for c in said)


def test_a_far_pod_that_is_lost_costs_no_run_anything(far, monkeypatch):
    """Its process dies, then it cannot be started again: unreachable, never dead; and back when it answers."""
    made = running(far.make())
    blocked = threading.Event()

    class Cut(LocalTransport):
        def start(self, *args, **more):
            if blocked.is_set():
                raise UnreachableError("E-SSH-999", "no way there")
            return super().start(*args, **more)

    pods = []

    def opener(name, spec):
        pods.append(FarPod("box", Cut(), root=str(far.there.path)))
        return pods[-1]

    spec = PodSpec.model_validate({"ssh": "ann@box.example"})
    monkeypatch.setattr("orchestrator.runs.watcheyes.EVERY_S", 0.2)
    eye = PodEye(far.home, "box", spec, opener)
    said = []
    looker = Watch(far.home, said.append, auto_resume=True, eyes={"box": eye})
    try:
        wait_all([eye], 30.0)
        looker.look()
        assert [(c.kind, c.pod) for c in said] == [("first", "box")]
        failed(made)
        made.status("running", "all ranks beat", supervisor=made.supervised())
        blocked.set()
        os.kill(int(pods[-1].hello["pid"]), 9)
        until(lambda: eye.error is not None)
        looker.look()
        looker.look()
        lost = said[1:]
        assert [c.kind for c in lost if c.kind != "rank-exit" and c.kind != "state"] == ["unreachable"]
        assert "the run goes on there" in lost[-1].text
        assert not any("resume" in p.name for p in made.run.requests.iterdir())
        blocked.clear()
        until(lambda: eye.error is None)
        looks = eye.looks
        until(lambda: eye.looks > looks)
        looker.look()
        assert any(c.kind == "back" for c in said)
    finally:
        looker.close()


def test_what_cannot_go_together_is_refused(orch, tmp_path):
    ran = orch("watch", "--dir", str(tmp_path), "--auto-resume")
    assert ran.code == 2 and "E-WATCH-001" in ran.err
    for args in ({"halt": "1"}, {"directory": tmp_path, "runs": ["x"]}, {"directory": tmp_path, "pod": "box"}):
        with pytest.raises(UsageError) as e:
            watch(**args)
        assert e.value.code == "E-WATCH-001"
    with pytest.raises(UsageError, match="'yes'"):
        watch(directory=tmp_path, halt="yes")
