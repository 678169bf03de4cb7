"""Orders, journal, inbox, halt file, queue arithmetic, outcomes: the small parts, each alone."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervisor import inbox
from orchestrator.supervisor.attempt import archive_halt, fresh_beat
from orchestrator.supervisor.behind import Holder, explain, holders, impossible
from orchestrator.supervisor.bounded import BoundedCaller, StillBusyError
from orchestrator.supervisor.hands import busy_devices, free_port, parse_uuids
from orchestrator.supervisor.journal import Journal, parse_events
from orchestrator.supervisor.leftovers import leftovers
from orchestrator.supervisor.lock import take_lock
from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.orders import make_orders
from orchestrator.supervisor.seen import RequestSeen
from orchestrator.supervisor.spec import RunSpec, parse_spec
from tests.supervisor.runs import ROOT, make_run, request, run_row
from workloads.contract.beats import parse_beat
from workloads.contract.errors import ConflictError, IntegrityError
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.haltfile import Halt, HaltProblem, read_halt
from workloads.contract.records import Status, as_wire
from workloads.contract.rundir import OrchHome, RunDir
from workloads.contract.states import RunState

RUN_ID = "sup-20261121T093000Z-1f3a"


def spec_of(home: Path = Path("/orch"), **changes: object) -> RunSpec:
    return parse_spec(run_row(OrchHome(home), RUN_ID, ["python", "t.py", "--lr 3e-4"], **changes))


# orders


def test_orders_carry_the_documented_environment_and_nothing_else() -> None:
    spec = spec_of(world=2, env={"PATH": "/bin", "PYTHONPATH": "/mine", "RANK": "nonsense"})
    run = RunDir(Path("/orch/runs") / RUN_ID)
    orders = make_orders(spec, run, attempt=3, port=12345, devices={}, start=0.0)
    assert [o.rank for o in orders] == [0, 1] and orders[1].argv == ["python", "t.py", "--lr 3e-4"]
    site = f"{ROOT}/workloads/runtime/site"
    assert orders[1].env == {
        "PATH": "/bin", "PYTHONPATH": f"{site}:/mine:{ROOT}", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345",
        "ORCH_RUN_DIR": str(run.path), "ORCH_RUN_ID": RUN_ID, "ORCH_ATTEMPT": "3", "ORCH_EPOCH": "3",
        "ORCH_POD": "local", "ORCH_HOME": "/orch", "ORCH_MARK": f"{RUN_ID}/a3/r1", "PYTHONUNBUFFERED": "1",
        "ORCH_STACKDUMP": f"{run.path}/stackdumps/stackdump_rank1_19700101T000000Z.txt", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    assert orders[0].halt == {"term_s": 600.0, "kill_s": 630.0, "now_term_s": 10.0, "now_kill_s": 30.0}


def test_orders_share_out_devices_by_uuid() -> None:
    spec = spec_of(world=2, gpus_per_rank=2)
    uuids = [f"GPU-{i}" for i in range(4)]
    orders = make_orders(spec, RunDir(Path("/r")), attempt=1, port=1, devices={"local": uuids}, start=0.0)
    assert orders[1].devices == ["GPU-2", "GPU-3"] and orders[1].env["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"
    with pytest.raises(ValueError, match="gave 3 devices"):
        make_orders(spec, RunDir(Path("/r")), attempt=1, port=1, devices={"local": uuids[:3]}, start=0.0)


def test_a_run_json_that_is_not_whole_is_refused() -> None:
    row = run_row(OrchHome(Path("/orch")), RUN_ID, ["x"])
    for broken in ({**row, "world_size": 3}, {k: v for k, v in row.items() if k != "argv"}, {**row, "pods": []}, {}):
        with pytest.raises(IntegrityError):
            parse_spec(broken)


# journal


def status_of(state: str = "running") -> Status:
    return Status(RUN_ID, "sup", state, "r", 1, 0.0, 0.0, ["local"])


def test_the_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first = Journal(run)
    first.event("state", "submitted", to="queued")
    first.event("state", "attempt 1", to="starting", data={"base_step": 4}, attempt=1)
    first.event("halt", "halted by me")
    first.once("k", "said once")
    with run.events.open("ab") as f:
        f.write(b'{"torn": ')
    second = Journal(run)
    second.load()
    second.once("k", "said once")
    assert second.memory == first.memory and second.memory.halt == "halted by me"
    second.event("note", "after the torn line")
    events = parse_events(run.events.read_bytes())
    assert [e.seq for e in events] == [0, 1, 2, 3, 4] and events[1].frm == "queued"


def test_attempt_numbers_are_never_used_twice(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.attempt_dir(7).mkdir(parents=True)
    run.epoch.write_text("5\n")
    journal = Journal(run)
    journal.load()
    assert journal.memory.attempt == 7


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NEARLY = st.fixed_dictionaries(
    {"seq": ANYTHING | st.just(7), "ts": ANYTHING | st.just(2.5), "attempt": ANYTHING | st.just(1)},
    optional={
        "who": ANYTHING | st.just("x"), "what": ANYTHING | st.sampled_from(["state", "stage", "restart", "halt"]),
        "why": ANYTHING, "to": ANYTHING | st.just("running"), "from": ANYTHING, "more": ANYTHING,
        "data": ANYTHING | st.dictionaries(
            st.sampled_from(["backoff_s", "base_step", "rank", "request", "spent", "tree", "argv", "once"]),
            ANYTHING | st.just(10**400),
        ),
    },
).map(lambda row: json.dumps(row).encode())  # fmt: skip
FIRST = b'{"seq":1,"ts":2,"attempt":1,"who":"x","what":"state","to":"dancing"}\n'


@given(st.binary(max_size=400) | NEARLY)
def test_any_bytes_give_events_that_can_be_remembered_or_nothing(raw: bytes) -> None:
    first, *others = parse_events(FIRST + raw)
    assert first.to == "dancing" and repr(others) == repr(parse_events(raw))
    memory = Memory()
    for event in (first, *others):
        assert type(event.seq) is int and isinstance(event.who + event.what + event.why, str)
        memory = memory.apply(event)
    assert memory.state is None or isinstance(memory.state, RunState)
    assert 0 <= memory.backoff_s < math.inf and type(memory.attempt) is int


def test_a_disk_that_refuses_delays_events_and_loses_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "not-there")
    journal = Journal(run)
    journal.event("state", "submitted", to="queued")
    journal.status(status_of("queued"), 1.0)
    assert journal.memory.state == RunState.QUEUED and not journal.flush()
    run.path.mkdir()
    assert journal.flush() and len(parse_events(run.events.read_bytes())) == 1


SHORT = """
import resource, signal, sys
from pathlib import Path
from orchestrator.supervisor.journal import Journal
from workloads.contract.rundir import RunDir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = RunDir(Path(sys.argv[1]))
journal = Journal(run)
journal.event("state", "submitted", to="queued")
resource.setrlimit(resource.RLIMIT_FSIZE, (run.events.stat().st_size + 40, resource.RLIM_INFINITY))
journal.event("state", "attempt 1", to="starting", attempt=1)
print(journal.trouble, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.event("note", "room again")
"""


def test_an_event_that_the_disk_took_in_part_is_written_again(tmp_path: Path) -> None:
    """A supervisor that did not know of the attempt would do its work a second time."""
    run = RunDir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "No space left" in done.stdout
    assert [e.seq for e in parse_events(run.events.read_bytes())] == [0, 1, 2]
    after = Journal(run)
    after.load()
    assert (after.memory.state, after.memory.attempt) == (RunState.STARTING, 1)


@pytest.mark.parametrize("odd", [math.nan, math.inf, {1, 2}])
def test_data_that_cannot_be_written_hold_up_nothing(tmp_path: Path, odd: object) -> None:
    journal = Journal(RunDir(tmp_path))
    journal.event("state", "resumed by ada", to="resuming", data={"who": "ada", "changes": {"lr": {"is": odd}}})
    journal.event("note", "the next")
    first, second = parse_events(journal.run.events.read_bytes())
    assert (first.why, first.to, second.why) == ("resumed by ada", "resuming", "the next")
    assert set(first.data) == {"unwritable"}
    again = Journal(journal.run)
    again.load()
    assert again.memory == journal.memory, "what is remembered is what was written"


def test_figures_alone_are_written_once_a_second(tmp_path: Path) -> None:
    journal, run = Journal(RunDir(tmp_path)), RunDir(tmp_path)
    for now, step in ((10.0, 1), (10.5, 2), (11.1, 3)):
        journal.status(replace(status_of(), step=step), now)
        assert read_json(run.status)["step"] == {10.0: 1, 10.5: 1, 11.1: 3}[now]
    journal.status(replace(status_of("halted"), step=4), 11.2)
    assert read_json(run.status)["state"] == "halted"


# requests


def test_the_inbox_answers_what_is_not_a_request(tmp_path: Path) -> None:
    run = make_run(OrchHome(tmp_path), ["x"])
    good = request(run, "halt", "aa", why="w\x1b", args={"now": True})
    request(run, "dump", "bb")
    run.request("halt", "cc").write_text("[]")
    deep = run.request("halt", "dd")
    deep.write_text("[" * 5000)
    wrong = request(run, "resume", "ee", args=7)
    request(run, "resume", "gg", args={"code": "current", "tree": "../elsewhere"})
    request(run, "resume", "hh", args={"argv": [1]})
    fifo = run.request("resume", "ff")
    os.mkfifo(fifo)
    for path in run.requests.iterdir():
        os.utime(path, (1, 1))
    found = {r.name: r for r in inbox.pending(run, 100.0)}
    assert len(found) == 7 and found[good.name].problem is None and found[good.name].why == "w\\x1b"
    assert all(r.problem for n, r in found.items() if n != good.name) and wrong.name in found
    for seen in found.values():
        inbox.answer(run, seen, seen.problem is None, seen.problem or "", {})
    assert inbox.pending(run, 100.0) == ()


def test_a_request_in_the_making_waits(tmp_path: Path) -> None:
    run = make_run(OrchHome(tmp_path), ["x"])
    path = run.request("halt", "aa")
    path.write_text('{"v":')
    assert inbox.pending(run, path.stat().st_mtime + 1.0) == ()
    assert isinstance(inbox.pending(run, path.stat().st_mtime + 3.0)[0], RequestSeen)


# .HALT


def test_what_counts_as_a_halt(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert read_halt(run) is None
    run.halt.write_text("")
    assert read_halt(run) == Halt(False, "", "a file", run.halt.stat().st_mtime)
    run.halt.write_bytes(b"loss is \xff\x1b[31m high\n")
    found = read_halt(run)
    assert isinstance(found, Halt) and "\x1b" not in found.why and found.why.startswith("loss is")
    atomic_write_json(run.halt, {"now": True, "why": "w", "who": "op@home", "ts": 5.0})
    assert read_halt(run) == Halt(True, "w", "op@home", 5.0)
    run.halt.write_text('{"ts": 1%s}' % ("0" * 400))  # no float holds it
    assert read_halt(run) == Halt(False, "", "a file", run.halt.stat().st_mtime)
    run.anomaly_type.write_text("gate_collapse\n")
    run.halt.write_text('{"now": "yes", "why": [], "ts": "x"}')
    found = read_halt(run)
    assert isinstance(found, Halt) and not found.now and found.why == "gate_collapse"


def test_what_is_no_halt(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.halt.symlink_to("/etc/hostname")
    assert isinstance(read_halt(run), HaltProblem)
    run.halt.unlink()
    os.mkfifo(run.halt)
    assert isinstance(read_halt(run), HaltProblem)
    run.halt.unlink()
    run.halt.mkdir()
    assert read_halt(run) == HaltProblem(".HALT is a directory; it is not obeyed")
    archive_halt(run, 1)
    run.halt.rmdir()
    if os.geteuid() == 0:
        run.halt.touch()
        os.chown(run.halt, 12345, 12345)
        assert isinstance(read_halt(run), HaltProblem)


@given(st.binary(max_size=300))
def test_any_halt_bytes_are_a_halt(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    run = RunDir(tmp_path_factory.mktemp("halt"))
    run.halt.write_bytes(raw)
    found = read_halt(run)
    assert isinstance(found, Halt) and found.why.isprintable() and found.who.isprintable()


def test_a_resume_leaves_a_fresh_beat_of_the_old_attempt(tmp_path: Path) -> None:
    run, spec = RunDir(tmp_path), spec_of()
    fresh_beat(spec, run, 2)
    assert not run.heartbeat(0).exists()
    run.heartbeat(0).write_bytes(
        b'{"v":1,"seq":41,"ts":1.0,"msg":"halting","rank":0,"world_size":1,"attempt":2}\n{"torn'
    )
    fresh_beat(spec, run, 2)
    beat = parse_beat(run.heartbeat(0).read_bytes().split(b"\n")[-2])
    assert beat is not None and (beat.seq, beat.msg, beat.attempt) == (42, "starting", 2)


# the queue


def test_why_a_run_waits() -> None:
    spec = spec_of(world=2)
    node = {"local": {"CPU": 4.0, "pod:local": 1.0}}
    assert impossible(spec, node) is None and impossible(spec, {}) is None
    assert impossible(spec_of(world=9), node) == "pod local has 4 CPUs, this run needs 9 CPUs: it can never start"
    assert "0 GPUs, this run needs 1 GPU:" in str(impossible(spec_of(gpus_per_rank=1), node))
    holder = Holder("a-20261121T093000Z-0000", "running", {"local": {"CPU": 3.0}})
    reason, by = explain(spec, node, [holder, replace(holder, run_id="b", state="queued")])
    assert reason == f"needs 2 of 4 CPUs on local, 1 free; behind {holder.run_id}" and by == (holder.run_id,)
    assert explain(spec, {}, [])[0] == "pod local has not joined the cluster yet"


def test_holders_are_the_live_runs_of_the_same_cluster(tmp_path: Path) -> None:
    home = OrchHome(tmp_path)
    live, done, other = (make_run(home, ["x"], name=n, **c) for n, c in (("a", {}), ("b", {}), ("c", {"cluster": "z"})))
    for run, state in ((live, "running"), (done, "halted"), (other, "running")):
        atomic_write_json(run.status, as_wire(status_of(state)))
    (home.runs / "junk-20261121T093000Z-1f3a").mkdir()
    assert [h.run_id for h in holders(home, spec_of(tmp_path))] == [live.run_id]


def test_leftovers_are_those_of_other_runs_that_have_ended() -> None:
    ended = "old-20261121T093000Z-0001"
    names = [ended, f"{ended}/local", RUN_ID, "somebody-else", "live-20261121T093000Z-0002"]
    assert leftovers(names, RUN_ID, lambda r: r in (ended, RUN_ID)) == [ended, f"{ended}/local"]


# small things


def test_one_supervisor_a_run(tmp_path: Path) -> None:
    held = take_lock(tmp_path / "supervisor.lock")
    with pytest.raises(ConflictError):
        take_lock(tmp_path / "supervisor.lock", wait_s=0.2)
    os.close(held)
    os.close(take_lock(tmp_path / "supervisor.lock", wait_s=0.2))


def test_a_hanging_call_holds_up_nobody() -> None:
    import threading
    import time

    caller, gate = BoundedCaller("t"), threading.Event()
    assert caller(lambda: 5, 1.0) == 5
    with pytest.raises(TimeoutError):
        caller(gate.wait, 0.05)
    with pytest.raises(StillBusyError):
        caller(lambda: 5, 1.0)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        for _ in range(100):
            try:
                caller(lambda: 1 // 0, 1.0)
            except StillBusyError:
                time.sleep(0.01)


def test_a_free_port_is_free() -> None:
    with socket.socket() as s:
        s.bind(("0.0.0.0", free_port()))


def test_uuids_from_strange_output() -> None:
    assert parse_uuids("0, GPU-aa\n1, GPU-bb\nNo devices\n\n2, ../../x\nx, GPU-cc\n") == {"0": "GPU-aa", "1": "GPU-bb"}


def test_busy_devices_name_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setenv("ORCH_LEASES", str(tmp_path))
    path = tmp_path / "GPU-1.lock"
    path.write_text('{"run":"other","rank":0}')
    assert busy_devices(["GPU-1", "GPU-2"]) == {}
    with path.open("rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert busy_devices(["GPU-1", "GPU-2"]) == {"GPU-1": "other"}
