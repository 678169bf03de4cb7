"""`orch status` and `orch runs` on run directories in every condition."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from orchestrator.runs import index
from orchestrator.runs.events import read_events
from orchestrator.runs.logs import log_ranks
from orchestrator.runs.report import index_table, runs_table, screen
from orchestrator.runs.views import snapshot
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.states import RankHealth

KEYS = [
    "run",
    "name",
    "state",
    "reason",
    "attempt",
    "step",
    "steps",
    "loss",
    "toks_per_s",
    "pods",
    "last_beat_age_s",
    "exit_codes",
    "pod_reachable",
    "seen_age_s",
]


def test_no_run_yet(orch):
    ran = orch("status")
    assert (ran.code, ran.err) == (0, "")
    assert "orch launch tiny" in ran.out
    assert orch("status", "--json").json == {"v": 1, "runs": []}


def test_submitted_but_no_supervisor_yet(orch, make, home):
    made = make()
    row = orch("status", "--json").json["runs"][0]
    assert list(row) == KEYS
    assert row["state"] == "queued"
    assert row["reason"] == "submitted; the supervisor has not started yet (the keeper is starting Ray for it)"
    assert row["attempt"] is row["step"] is row["loss"] is row["last_beat_age_s"] is None
    assert row["pods"] == ["local"] and row["exit_codes"] == {}
    made.run.submissions.write_text(json.dumps({"n": 1, "ts": time.time(), "cluster": "0" * 12}))
    assert "the keeper submitted it " in orch("status", "tiny").out
    made.run.submissions.write_text(json.dumps({"n": 2, "ts": time.time(), "error": "HTTP 500: no agent\x1b[31m"}))
    reason = snapshot(made.run, time.time()).reason
    assert "submission 2 failed: HTTP 500: no agent" in reason and "\x1b" not in reason
    home.keeper_record.unlink()
    assert "no keeper runs on this machine" in snapshot(made.run, time.time()).reason


def test_running(orch, make):
    made, now = make(), time.time()
    made.status("running", "all ranks beat", supervisor=made.supervised(), steps=1000)
    for rank in (0, 1):
        made.record(rank)
        for i in range(20):
            made.beat(rank, now - 20 + i, step=i * 10, steps=1000, loss=4.0 - i / 10, toks_per_s=1234.5)
    row = orch("status", "latest", "--json").json["runs"][0]
    assert (row["step"], row["steps"], row["loss"], row["toks_per_s"]) == (190, 1000, 2.1, 1234.5)
    assert 0.5 < row["last_beat_age_s"] < 20
    out = orch("status", made.run.run_id).out
    for words in ("running\n", "190/1000", "live", "eta", "orch halt", str(made.run.path)):
        assert words in out
    assert "1 min 2" in out  # 810 steps at 10 steps a second


def test_a_fallback_of_the_data_is_said(orch, make):
    made, now = make(), time.time()
    row = json.loads(made.run.run_json.read_text())
    row["job"]["data"] = {"source": "hub"}
    made.run.run_json.write_text(json.dumps(row))
    made.status("running", "all ranks beat", supervisor=made.supervised(), steps=1000)
    for rank, source in enumerate(("hub", "hub")):
        made.record(rank)
        made.beat(rank, now - 5, step=1, data_source=source)
    assert "TRAINS ON" not in orch("status", "latest").out + orch("status").out
    made.beat(1, now - 4, step=2, data_source="synthetic")
    made.beat(1, now - 3, step=2)  # a keepalive says nothing of data
    for out in (orch("status", "latest").out, orch("status").out):
        assert "TRAINS ON synthetic (rank 1), NOT ON hub" in out


def test_unsupervised_is_said(orch, make, sleeper):
    made = make()
    made.status("running", "x", ts=time.time() - 100, supervisor={**made.supervised(), "start_time": 1})
    made.record(0, pid=sleeper.pid)
    assert "running, unsupervised 1m4" in orch("status", "tiny").out
    assert orch("status", "--json").json["runs"][0]["state"] == "running"


def test_exit_codes_and_dead_ranks(orch, make):
    made = make()
    made.status("failed", "rank 1 was killed by signal 9")
    made.record(0, ended=time.time(), exit_code=0, cause="exited")
    made.record(1, ended=time.time(), signal=9, cause="signalled", oom=True)
    assert orch("status", "--json").json["runs"][0]["exit_codes"] == {"0": 0, "1": -9}
    out = orch("status", "tiny").out
    assert "killed by signal 9 (out of memory)" in out and "orch resume" in out and "--errors" in out


def test_nan_is_not_bad_json(orch, make):
    made = make(world=1)
    made.status("running", supervisor=made.supervised())
    made.record(0)
    made.beat(0, time.time(), step=3, loss=float("nan"))
    assert orch("status", "--json").json["runs"][0]["loss"] == "nan"


def test_hostile_files_change_nothing_but_the_words(orch, make):
    made = make()
    made.run.status.write_bytes(b'{"state":"running\x1b[2J')
    made.run.heartbeat(0).write_bytes(b"\xff\x00" * 5000)
    made.run.events.write_bytes(b"[1]\n{}\n\x1b]0;x\x07\n" + b"[" * 100_000)
    ran = orch("status", "tiny")
    assert ran.code == 0 and "\x1b" not in ran.out and "queued" in ran.out
    made.status("failed", "it said \x1b[31mred\x1b[0m\nand more")
    ran = orch("status")
    assert ran.code == 0 and "\x1b" not in ran.out and "\\x1b[31mred" in ran.out


def test_ended_ones_are_limited(orch, make):
    for i in range(13):
        make(f"old-{i}", created=1_795_000_000.0 + i).status("succeeded")
    living = make("alive", created=1_700_000_000.0)
    living.status("running", supervisor=living.supervised())
    names = [r["name"] for r in orch("status", "--json").json["runs"]]
    assert names == ["alive", *[f"old-{i}" for i in range(12, 2, -1)]]
    assert len(orch("runs", "--json").json["runs"]) == 14


def test_vanished_and_rebuilt(orch, make):
    made = make()
    assert orch("runs", "--json").json["runs"][0]["present"] is True
    shutil.rmtree(made.run.path)
    row = orch("runs", "--json").json["runs"][0]
    assert (row["present"], row["state"]) == (False, None)
    assert "directory gone" in orch("runs").out
    gone = orch("status", "tiny")
    assert gone.code == 2 and "E-RUN-003" in gone.err
    assert orch("runs", "--rebuild", "--json").json["runs"] == []


def test_stages_and_events(orch, make):
    made = make()
    made.status("running", supervisor=made.supervised())
    made.event(1, "stage", data={"stage": "placed", "seconds": 1.5})
    made.event(2, "stage", data={"stage": "first step", "seconds": 4.25})
    made.event(3, "state", "all ranks beat", frm="starting", to="running")
    out = orch("status", "tiny").out
    assert "where the time went: placed 1.5 s, first step 4.2 s" in out
    assert "starting -> running: all ranks beat" in out


FOREIGN = (None, True, -1, float("inf"), float("nan"), 10**400, "x\x1b", [1], {"a": 1})


def _spoil(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize("key", ["state", "reason", "since", "ts", "attempt", "pods", "loss", "behind", "exit_codes"])
def test_a_status_that_is_not_orchs_own_harms_no_view(make, key):
    made = make()
    made.status("failed", "boom", loss=1.5)
    made.event(0, "state", "x")
    for value in FOREIGN:
        made.status("failed", "boom")
        _spoil(made.run.status, key, value)
        view = snapshot(made.run, time.time())
        json.dumps(view.as_json(), allow_nan=False)
        assert "\x1b" not in runs_table([view]) + screen(view, read_events(made.run))


@pytest.mark.parametrize("key", ["world_size", "pods", "created", "kind", "job"])
def test_a_run_json_that_is_not_orchs_own_harms_no_view(make, home, key):
    made = make()
    for value in FOREIGN:
        _spoil(made.run.run_json, key, value)
        view = snapshot(made.run, time.time())
        json.dumps(view.as_json(), allow_nan=False)
        assert log_ranks(made.run, view.world_size)[:2] in ([], [0], [0, 1])  # bounded, whatever the file says
        assert index.rebuild(home) == 1 and index_table(index.list_runs(home), ["queued"])


@pytest.mark.parametrize("key", ["seq", "ts", "attempt", "what", "why", "from", "data"])
def test_an_event_that_is_not_orchs_own_harms_no_view(make, key):
    made = make()
    made.status("failed", "boom")
    rows = [{"v": 1, "seq": 0, "ts": 1.0, "attempt": 1, "who": "x", "what": "state", key: value} for value in FOREIGN]
    made.run.events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "\x1b" not in screen(snapshot(made.run, time.time()), read_events(made.run))


OTHER_BOOT = "11111111-2222-3333-4444-555555555555"


def on_another_machine(made, *, status_age_s):
    """The home is on a disk that two machines share, and the run goes on on the other one."""
    now = time.time()
    made.status("running", "the first step was made", ts=now - status_age_s,
                supervisor={"pid": 4242, "start_time": 5, "boot_id": OTHER_BOOT})  # fmt: skip
    for rank in range(made.world):
        made.record(rank, ts=now - 80)
        path = made.run.rank_record(1, rank)
        atomic_write_json(path, read_json(path) | {"pid": 4, "start_time": 1, "boot_id": OTHER_BOOT})
        for step in range(6):
            made.beat(rank, now - status_age_s - 5 + step, step=step, steps=900, loss=1.0, step_time_s=1.0)


def test_a_run_of_another_machine_on_a_shared_disk_is_not_called_dead(orch, make, home):
    made = make()
    on_another_machine(made, status_age_s=-120.0)  # ahead of our clock: not told of this very moment
    assert not snapshot(made.run, time.time()).supervised
    on_another_machine(made, status_age_s=0.0)
    view = snapshot(made.run, time.time())
    assert view.supervised and view.elsewhere and {r.health for r in view.ranks} == {RankHealth.LIVE}
    assert view.words == "running (looked after on another machine)"
    home.keeper_record.unlink()
    made.status("running", "the first step was made", ts=time.time() + 10, supervisor=view.status.supervisor)
    ran = orch("status", "tiny")
    if time.time() < snapshot(made.run, 0.0).status.ts + 10:  # else this machine was too slow for the moment
        assert "looked after on another machine" in ran.out and "dead" not in ran.out
        assert not home.keeper_record.exists(), "no keeper is woken"


def test_a_run_of_this_machine_before_a_reboot_is_not_taken_for_anothers(make, monkeypatch):
    made = make()
    on_another_machine(made, status_age_s=60.0)  # it was some time ago: the machine it was on is gone
    view = snapshot(made.run, time.time())
    assert not view.supervised and {r.health for r in view.ranks} == {RankHealth.DEAD}
    on_another_machine(made, status_age_s=5.0)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: 2.0)  # booted since
    view = snapshot(made.run, time.time())
    assert not view.supervised and not view.elsewhere and {r.health for r in view.ranks} == {RankHealth.DEAD}
