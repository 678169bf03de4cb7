"""What is said of a run on a pod: by its pod's eyes and clock, and honestly when the pod cannot be asked."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from orchestrator.runs import index, render
from orchestrator.runs.follow import follow, last_words, wait_stopped
from orchestrator.runs.redact import redactor
from orchestrator.runs.source import FarSource, fetch, resolve, wait_ack
from orchestrator.runs.waiting import Live
from pods.pod import FarPod
from pods.transport.local import LocalTransport
from tests.cli.conftest import Orch
from tests.mirror.conftest import Far
from tests.mirror.liar import liar, sync_of
from workloads.contract.errors import ConflictError, RemoteError, UnreachableError
from workloads.contract.files import atomic_write_json
from workloads.contract.records import Ack, as_wire
from workloads.contract.states import RankHealth


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait(timeout=120)


def running(far: Far, **more):
    made = far.make(**more)
    made.status("running", "all ranks beat", supervisor=made.supervised())
    for rank in range(made.world):
        made.record(rank)
        made.beat(rank, time.time(), step=7, steps=100, loss=1.5)
    return made


def test_processes_are_seen_by_the_pods_eyes(far, sleeper, monkeypatch):
    made = running(far, world=3)
    made.record(1, pid=sleeper.pid)
    os.kill(sleeper.pid, signal.SIGSTOP)
    source = far.source(made.run)
    monkeypatch.setattr("orchestrator.runs.views._here", lambda record: pytest.fail("this machine was asked"))
    fetch(source)
    view = source.view()
    assert view.supervised and [r.health for r in view.ranks] == [RankHealth.LIVE, RankHealth.STOPPED, RankHealth.LIVE]
    sleeper.kill()
    sleeper.wait(timeout=120)
    fetch(source)
    assert source.view().ranks[1].health is RankHealth.DEAD
    made.status("running", "x", supervisor={"pid": 999999, "start_time": 1, "boot_id": "x"}, ts=time.time() - 60)
    fetch(source)
    assert source.view().words.startswith("running, unsupervised 1m0")


def test_before_the_first_status_the_keeper_speaks(far):
    made = far.make()
    source = far.source(made.run)
    fetch(source)
    assert "the keeper is starting Ray for it" in source.view().reason


def test_ages_are_by_the_pods_clock(far):
    """A pod whose clock is a day ahead: no age is negative or a day long."""
    made = running(far)
    source = far.source(made.run)
    fetch(source)
    ahead = source.mirror.index
    ahead.pod_now += 86400
    for rank in (0, 1):
        source.run.heartbeat(rank).write_bytes(b"")
    pod_time = ahead.pod_now - 3
    for rank in (0, 1):
        made.run.heartbeat(rank).unlink()
        made.beat(rank, pod_time, step=8, steps=100)
        source.run.heartbeat(rank).write_bytes(made.run.heartbeat(rank).read_bytes())
    view = source.view()
    assert 2.9 < view.last_beat_age_s < 3.1 and all(r.health is RankHealth.LIVE for r in view.ranks)


def test_a_lost_pod_makes_no_rank_silent(far):
    made = running(far)
    source = far.source(made.run)
    fetch(source)
    source.mirror.index.seen -= 7200
    source.mirror._write_index()
    lost = FarSource(far.home, source.run, "box", lambda: FarPod("box", Deaf()))
    with pytest.raises(UnreachableError):
        lost.refresh()
    view = lost.view()
    assert view.words.startswith("running (pod box unreachable 2h00m; last seen ")
    assert all(r.health is RankHealth.LIVE for r in view.ranks)
    row = view.as_json()
    assert row["state"] == "running" and row["pod_reachable"] is False and 7200 <= row["seen_age_s"] < 7300


class Deaf(LocalTransport):
    name = "box"

    def start(self, argv, *, timeout_s):
        raise UnreachableError("E-SSH-001", "pod box does not answer")


def later(delay_s: float, *steps) -> None:
    def play() -> None:
        for step in steps:
            time.sleep(delay_s)
            step()

    threading.Thread(target=play, daemon=True).start()


@pytest.mark.long
def test_follow_over_a_cut_to_the_end(far):
    made = running(far)
    made.run.training_csv.write_text("step,loss\n1,5.5\n40,1.25\n")
    out = io.StringIO()
    source = far.source(made.run)
    fetch(source)  # connected, so that there is something to kill

    def end() -> None:
        for rank in (0, 1):
            made.record(rank, ended=100.0 + rank, exit_code=3)
        made.log(0, b"".join(b"line %d\n" % i for i in range(50_000)) + b"\x1b[31mboom\n")
        made.event(2, "state", "rank 0 exited with 3", frm="running", to="failed")
        made.status("failed", "rank 0 exited with 3", supervisor=made.supervised())

    later(1.0, far.kill, end)
    view = follow(source, Live(out))
    words = last_words(view)
    text = out.getvalue()
    assert view.state == "failed" and text.count("cannot be reached") == 1 and "is reached again" in text
    assert "running -> failed" in text and len(words) == 32 and words[30] == "  | \\x1b[31mboom"
    assert source.run.training_csv.read_text().endswith("40,1.25\n") and source.size_bytes < 400_000


def test_a_stale_end_does_not_end_the_following(far):
    made = running(far)
    made.status("halted", "dinner")
    source = far.source(made.run)
    fetch(source)
    made.status("running", "resumed", supervisor=made.supervised())
    again = far.source(made.run)
    again.reachable = False
    assert again.view().ended and not again.view().over
    later(1.0, lambda: made.status("succeeded", "done"))
    assert follow(again, Live(io.StringIO())).state == "succeeded"


def test_waiting_for_a_halt_and_for_an_answer(far):
    made = running(far)
    source = far.source(made.run)
    fetch(source)
    request = source.ask("halt", run=made.run.run_id, now=False, why="dinner", who="me")["request"]
    assert made.run.halt.exists()

    def stop() -> None:
        path = made.run.requests / request
        atomic_write_json(made.run.ack_of(path), as_wire(Ack(True, "test", time.time(), "asked", {"n": 1})))
        for rank in (0, 1):
            made.halt_ack(rank, 120)
            made.record(rank, ended=time.time(), exit_code=75)
        made.status("halted", "dinner", supervisor=made.supervised())

    later(0.5, stop)
    ack = wait_ack(source, request, timeout_s=10)
    assert ack is not None and ack.data == {"n": 1}
    stopped = wait_stopped(source, Live(io.StringIO()), limit_s=20)
    assert stopped.confirmed and stopped.acks[1].step == 120
    with pytest.raises(ConflictError, match="succeeded"):
        made.status("succeeded", "x")
        source.ask("resume", run=made.run.run_id, tree=None, why="", who="me")
    for odd in ("../../x.json", "x", "20261121T000000Z-halt-1.json/..", "\x1b"):
        with pytest.raises(RemoteError):
            wait_ack(source, odd, timeout_s=1)


def test_the_index_of_an_older_orch_is_taken_over(far):
    made = running(far)
    with sqlite3.connect(far.home.index) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE runs (run TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL,"
            " kind TEXT NOT NULL, pods TEXT NOT NULL) WITHOUT ROWID"
        )
        db.execute("INSERT INTO runs VALUES ('old-20261118T110640Z-abcd', 'old', 1.0, 'train', 'local')")
        db.execute("PRAGMA user_version=1")
    db.close()
    fetch(far.source(made.run))
    said: list[str] = []
    rows = {r.name: r for r in index.list_runs(far.home, said.append)}
    assert said == [] and (rows["old"].present, rows["old"].pod) == (False, "")
    assert (rows["tiny"].present, rows["tiny"].pod) == (True, "box")
    assert resolve(far.home, "tiny").pod == "box"
    index.rebuild(far.home)
    assert [(r.name, r.pod) for r in index.list_runs(far.home)] == [("tiny", "box")]


def test_a_launch_on_a_pod_is_found_before_anything_was_copied(far):
    made = far.make("fresh")
    doc = {"run": made.run.run_id, "created": 5.0, "kind": "train", "pods": [{"name": "box"}]}
    index.record(far.home, doc, pod="box")
    source = resolve(far.home, "fresh")
    assert source.far and source.pod == "box" and source.view().state == "unknown"


def test_secrets_are_hidden_from_what_is_shown(far, monkeypatch):
    monkeypatch.setattr(render, "_redact", [])
    made = running(far)
    made.run.secrets.write_text('{"HF_TOKEN": "hf_canary_123456"}')
    made.run.secrets.chmod(0o600)
    source = far.source(made.run)
    fetch(source)
    assert source.secrets() == {"HF_TOKEN": "hf_canary_123456"}
    row = json.loads(source.run.run_json.read_text())
    row["job"]["secrets"] = ["HF_TOKEN", "../x"]
    source.run.run_json.write_text(json.dumps(row))
    monkeypatch.setenv("HF_TOKEN", "hf_canary_123456")
    lost = FarSource(far.home, source.run, "box", lambda: pytest.fail("it was asked again"))
    lost.reachable = False
    assert lost.secrets() == {"HF_TOKEN": "hf_canary_123456"}
    render.hide(redactor(source.secrets()))
    assert render.harmless("token=hf_canary_123456\n") == "token=[secret HF_TOKEN]\n"
    document = {"runs": [{"reason": "bad hf_canary_123456", "step": 3, "loss": None, "pods": ("a",)}]}
    assert render.redacted(document) == {
        "runs": [{"reason": "bad [secret HF_TOKEN]", "step": 3, "loss": None, "pods": ["a"]}]
    }


@pytest.mark.parametrize("verb", ["status", "why"])
def test_secrets_are_hidden_from_what_the_copy_shows(far, verb, tmp_path):
    """The real command; the pod is not asked, so the value is what a launch from here would take."""
    canary = "hf_canary_123456"
    made = far.make()
    made.run.run_json.write_text(
        json.dumps(json.loads(made.run.run_json.read_text()) | {"job": {"secrets": ["HF_TOKEN"]}})
    )
    made.log(0, f"HTTPError: 401 token={canary}\n".encode())
    for rank in (0, 1):
        made.record(rank, ended=time.time(), exit_code=1)
    made.event(0, "rank-exit", "rank 0 ended with exit code 1", data={"rank": 0, "exit_code": 1, "lines": [canary]})
    made.status("failed", f"rank 0: bad token {canary}")
    fetch(far.source(made.run))
    far.home.secrets.write_text(f"HF_TOKEN: {canary}\n")
    far.home.secrets.chmod(0o600)
    orch = Orch(far.home, tmp_path)
    for more in ((), ("--json",)):
        ran = orch(verb, made.run.run_id, "--cached", *more)
        assert "[secret HF_TOKEN]" in ran.out and canary not in ran.out + ran.err, ran.out
    orch.close()


def test_a_pods_asleep_words_are_bounded(far):
    run = "tiny-20261118T110640Z-abcd"
    pod = liar(sync_of(run, [], observed={"asleep": "x" * 10_000_000}))
    source = FarSource(far.home, far.home.mirrored(run), "liar", lambda: pod)
    source.refresh()
    assert len(source.view().reason) < 2000
