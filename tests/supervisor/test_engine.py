"""The engine over real shims and ranks, without Ray: starts, deaths, halts, resumes, a killed supervisor."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.runs.find import pick
from orchestrator.runs.index import IndexRow
from orchestrator.supervisor.seen import GangSeen, GangState
from tests.supervisor.direct import Desk, DirectGang
from tests.supervisor.runs import make_run, request
from workloads.contract.errors import UsageError
from workloads.contract.files import read_json, try_read_json
from workloads.contract.process import marked
from workloads.contract.rundir import OrchHome, RunDir

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
Make = Callable[..., Desk]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    home = OrchHome(tmp_path / "home")
    desks: list[Desk] = []

    def build(code: str, **changes: object) -> Desk:
        argv = changes.pop("argv", None) or [sys.executable, "-c", code]
        desks.append(Desk(make_run(home, argv, **changes)))  # type: ignore[arg-type]
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


def test_a_good_run(make: Make) -> None:
    desk = make("import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['MASTER_PORT'])", world=2)
    status = desk.until("succeeded")
    assert status["exit_codes"] == {"0": 0, "1": 0} and status["attempt"] == 1
    ports = {desk.run.rank_log(r).read_text().split()[2] for r in (0, 1)}
    assert len(ports) == 1 and desk.run.epoch.read_text() == "1\n"
    states = [e["to"] for e in desk.events("state")]
    assert states[:3] == ["queued", "preparing", "starting"] and states[-1] == "succeeded"
    assert [e["seq"] for e in map(json.loads, desk.run.events.read_text().splitlines())] == sorted(
        range(len(desk.run.events.read_text().splitlines()))
    )
    desk.leave()
    assert desk.gang.released


def test_a_killed_rank_is_named_its_peer_ended_and_both_restarted(make: Make) -> None:
    desk = make(SLEEP, world=2)
    desk.until("running", 1)
    peer = desk.pid(1, 0)
    desk.turn(lambda: "up" in desk.run.rank_log(1).read_text())
    desk.pid(1, 1).signal(signal.SIGKILL)
    status = desk.until("running", 2)
    assert not peer.alive() and status["restarts"] == 1
    exit_event = desk.events("rank-exit")[0]
    assert exit_event["why"] == "rank 1 was killed by signal 9 (SIGKILL)"
    assert exit_event["data"]["lines"] == ["up"] and exit_event["data"]["signal"] == 9  # type: ignore[index]
    assert desk.run.epoch.read_text() == "2\n"


def test_a_program_that_fails_without_a_step_fails_the_run(make: Make) -> None:
    desk = make("import sys; print('boom \\x1b[2J'); sys.exit(3)")
    status = desk.until("failed")
    assert status["reason"] == "rank 0 ended with exit code 3" and status["exit_codes"] == {"0": 3}
    told = desk.events("rank-exit")
    assert [e["data"]["lines"] for e in told] == [["boom \\x1b[2J"]]  # type: ignore[index]


SAY = """
import json, os, sys
row = dict(v=1, run=os.environ['ORCH_RUN_ID'], attempt=int(os.environ['ORCH_ATTEMPT']) - {old}, verdict='{word}',
           why='2 of 112 \\x1b[2J cells', ts=1.0)
open(os.environ['ORCH_RUN_DIR'] + '/verdict.json', 'w').write(json.dumps(row))
sys.exit({code})
"""


def test_a_verdict_of_this_attempt_is_the_reason(make: Make) -> None:
    told = make(SAY.format(word="no-go", code=78, old=0)).until("failed")
    assert (told["reason"], told["attempt"]) == ("no-go: 2 of 112 \\x1b[2J cells", 1)
    assert make(SAY.format(word="go", code=0, old=0)).until("succeeded")["reason"] == "go: 2 of 112 \\x1b[2J cells"
    assert make(SAY.format(word="go", code=0, old=1)).until("succeeded")["reason"] == "the rank ended well"
    old = make(SAY.format(word="no-go", code=78, old=1)).until("failed")
    assert old["reason"] == "rank 0 ended with exit code 78"


def test_restarts_end_when_nothing_is_gained(make: Make) -> None:
    desk = make("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", restart={"max": 2, "backoff_s": [0]})
    status = desk.until("failed")
    assert status["attempt"] == 3 and str(status["reason"]).endswith("2 restarts brought no new step")


def test_a_gained_step_makes_the_next_restart_the_first_again(make: Make) -> None:
    beat = (
        "import os, json, time, signal; a = int(os.environ['ORCH_ATTEMPT'])\n"
        "row = dict(v=1, seq=a, ts=time.time(), msg='progress', rank=0, world_size=1, attempt=a, step=a * 10)\n"
        "row['loss'] = 2.5\n"
        "open(os.environ['ORCH_RUN_DIR'] + '/heartbeat_rank0.jsonl', 'a').write(json.dumps(row) + '\\n')\n"
        "time.sleep(1.0) if a < 4 else None\n"
        "os.kill(os.getpid(), signal.SIGKILL) if a < 4 else None"
    )
    desk = make(beat, restart={"max": 1, "backoff_s": [0]}, kind="train")
    status = desk.until("succeeded", timeout_s=60)
    assert status["attempt"] == 4 and status["restarts"] == 3
    assert (status["step"], status["loss"], status["steps"]) == (40, 2.5, 50)


def test_a_lease_folder_that_cannot_be_used_fails_the_run_and_is_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "file"))
    monkeypatch.setattr(DirectGang, "devices", lambda self: {"local": ["GPU-aaa"]})
    desk = make(SLEEP, gpus_per_rank=1)
    desk.turn(lambda: desk.status.get("state") == "failed" or desk.status.get("attempt", 0) == 2)
    told = str(desk.status["reason"])
    assert told.startswith(f"rank 0 could not be started: devices cannot be leased in {tmp_path / 'file'}"), told
    assert desk.status["state"] == "failed" and desk.status["attempt"] == 1


def test_orders_that_cannot_be_written_are_waited_for_and_told(make: Make) -> None:
    """As a full disk refuses them: nobody was asked to start anything, so that nothing failed to start."""
    desk = make("print('up')")
    order = desk.run.rank_order(1, 0)
    order.mkdir(parents=True)  # the write in its place is refused
    now = time.monotonic()
    for _ in range(400):
        now += 0.5
        desk.engine.tick(now)
    assert desk.status["state"] == "starting" and "spawn failed: [Errno 21]" in str(desk.status["reason"])
    assert desk.gang.spawned == 0 and not desk.events("rank-exit")
    order.rmdir()
    deadline = time.monotonic() + 120
    while desk.status["state"] != "succeeded":
        assert time.monotonic() < deadline, desk.status
        now += 0.5
        desk.engine.tick(now)
        time.sleep(0.05)
    assert desk.status["attempt"] == 1 and desk.status["restarts"] == 0


def test_halt_by_hand_then_resume(make: Make) -> None:
    desk = make(SLEEP, world=2)
    desk.until("running")
    desk.run.halt.write_text("enough\nof this")
    ask = request(desk.run, "halt", why="enough")
    status = desk.until("halted")
    assert "halted by a file: enough\\nof this" in str(status["reason"])
    assert desk.events("verdict")[0]["why"] == "clean"
    desk.leave()
    assert read_json(RunDir.ack_of(ask))["ok"] is True
    go = request(desk.run, "resume", "efgh", why="go on")
    desk.again()
    desk.until("running", 2)
    assert read_json(RunDir.ack_of(go))["ok"] is True
    assert not desk.run.halt.exists() and desk.run.archived_halt(1).read_text() == "enough\nof this"


def test_a_halt_request_alone_is_carried_out(make: Make) -> None:
    desk = make(SLEEP)
    desk.until("running")
    ask = request(desk.run, "halt", why="please", args={"now": True})
    status = desk.until("halted")
    assert "halted by test: please" in str(status["reason"])
    desk.leave()
    assert read_json(RunDir.ack_of(ask))["ok"] is True


def test_halt_is_a_latch(make: Make) -> None:
    code = "import signal, time; signal.signal(15, lambda *a: (time.sleep(1), exit(0))); print('up'); time.sleep(600)"
    desk = make(code)
    desk.turn(lambda: desk.run.rank_log(0).exists() and "up" in desk.run.rank_log(0).read_text())
    desk.run.halt.touch()
    desk.until("halting")
    desk.run.halt.unlink()
    desk.turn(lambda: desk.status["state"] in ("halted", "succeeded"))
    assert desk.status["attempt"] == 1


def test_what_only_looks_like_a_halt_is_told_once_and_not_obeyed(make: Make) -> None:
    desk = make(SLEEP)
    desk.until("running")
    desk.run.halt.symlink_to("/etc/hostname")
    for _ in range(5):
        desk.engine.tick(desk.engine._entered + 1)
    notes = [e for e in desk.events("note") if "symbolic link" in str(e["why"])]
    assert len(notes) == 1 and desk.status["state"] == "running"


def test_a_killed_supervisor_finds_its_ranks_again(make: Make) -> None:
    desk = make(SLEEP, world=2)
    desk.until("running")
    pids = [desk.pid(1, r) for r in (0, 1)]
    for _ in range(3):
        desk.again()
        desk.engine.tick(0.0)
    assert desk.gang.spawned == 0 and all(p.alive() for p in pids) and desk.status["attempt"] == 1


def test_killed_between_the_event_and_the_orders(make: Make) -> None:
    desk = make(SLEEP, world=2)
    desk.turn(lambda: desk.engine.journal.memory.state == "preparing")
    desk.engine.journal.event("state", "attempt 1", to="starting", data={"base_step": -1}, attempt=1)
    desk.again()
    desk.until("running", 1)
    assert len(marked(desk.run.run_id)) == 2


def test_killed_in_the_middle_of_a_resume(make: Make) -> None:
    desk = make(SLEEP)
    desk.until("running")
    desk.run.halt.touch()
    desk.until("halted")
    ask = request(desk.run, "resume", "efgh")
    journal = desk.engine.journal
    journal.event("state", "resumed by test", to="resuming", data={"request": ask.name})
    desk.run.halt.unlink()
    desk.again()
    desk.until("running", 2)
    assert read_json(RunDir.ack_of(ask))["ok"] is True


def test_a_resume_may_bring_other_code(make: Make) -> None:
    desk = make("import sys; sys.exit(9)")
    desk.until("failed")
    argv = [sys.executable, "-c", "print('repaired')"]
    request(desk.run, "resume", "efgh", args={"code": "current", "argv": argv})
    desk.until("succeeded", 2)
    assert desk.run.rank_log(0).read_text() == "repaired\n"


def test_a_resume_with_a_number_that_is_none_is_refused_and_holds_up_nothing(make: Make) -> None:
    desk = make("import sys; sys.exit(3)")
    desk.until("failed")
    ask = desk.run.request("resume", "aaaa")
    args = {"code": "run", "changes": {"train.lr": {"was": math.nan, "is": 1}}}
    ask.write_text(json.dumps({"v": 1, "verb": "resume", "who": "ada", "ts": 1.0, "args": args}))
    os.utime(ask, (1, 1))
    desk.turn(lambda: RunDir.ack_of(ask).exists())
    assert "not finite" in read_json(RunDir.ack_of(ask))["why"] and desk.status["state"] == "failed"
    request(desk.run, "resume", "bbbb")
    desk.until("failed", 2)


def test_requests_that_cannot_be_carried_out_are_answered(make: Make) -> None:
    desk = make(SLEEP)
    desk.until("running")
    asks = [request(desk.run, "resume", "aaaa"), request(desk.run, "dance", "bbbb")]
    torn = desk.run.request("halt", "cccc")
    torn.write_bytes(b'{"v":1,"verb":')
    os.utime(torn, (1, 1))
    odd = desk.run.request("halt", "eeee")
    odd.write_text(json.dumps({"v": 1, "verb": "halt", "who": "ada", "ts": 1.0, "args": {"odd": [math.inf]}}))
    os.utime(odd, (1, 1))
    link = desk.run.request("halt", "dddd")
    link.symlink_to("/etc/passwd")
    foreign = desk.run.requests / "notes.txt"
    foreign.write_text("hello")
    desk.engine.tick(1.0)
    for ask in [*asks, torn, odd, link]:
        assert read_json(RunDir.ack_of(ask))["ok"] is False
    assert desk.status["state"] == "running"


def test_a_command_that_does_not_exist(make: Make) -> None:
    desk = make("", argv=["python3.99", "x.py"])
    status = desk.until("failed")
    assert "rank 0 could not be started" in str(status["reason"]) and "python3.99" in str(status["reason"])


def test_queued_behind_somebody_and_halted_there(make: Make) -> None:
    desk = make(SLEEP)
    desk.gang.seen = GangSeen(GangState.PENDING, "needs 1 of 2 CPUs on local, 0 free; behind x", ("x",))
    desk.turn(lambda: desk.status.get("behind") == ["x"])
    assert desk.status["state"] == "queued" and "behind x" in str(desk.status["reason"])
    desk.run.halt.touch()
    assert "while queued" in str(desk.until("halted")["reason"])


def test_a_busy_device_keeps_the_run_queued_without_using_up_attempts(make: Make) -> None:
    desk = make(SLEEP)
    desk.gang.held = {"GPU-1": "other"}
    desk.turn(lambda: desk.status.get("behind") == ["other"])
    assert desk.status["attempt"] == 0
    desk.gang.held, desk.engine._leases_at = {}, -100.0
    desk.until("running", 1)


def test_a_double_forked_child_is_gone_before_the_next_attempt(make: Make) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(600)\n os._exit(0)\n"
        "os.wait(); time.sleep(600)"
    )
    desk = make(code)
    desk.until("running")
    desk.turn(lambda: len(marked(desk.run.run_id)) == 2)
    old = marked(desk.run.run_id)
    desk.pid(1, 0).signal(signal.SIGKILL)
    desk.until("running", 2)
    assert not any(p.alive() for p in old)


def test_a_run_whose_directory_was_removed_is_left_once_nothing_of_it_lives(make: Make, tmp_path: Path) -> None:
    desk = make(SLEEP)
    desk.until("running", 1)
    rank = desk.pid(1, 0)
    row = IndexRow(desk.run.run_id, "sup", 0.0, "command", ("local",), present=False)
    desk.run.path.rename(tmp_path / "away")
    desk.speed = 30.0
    for _ in range(30):  # some 45 s of the engine's clock
        assert not desk.tick(), "it may come back, and its rank lives"
        time.sleep(0.05)
    assert rank.alive() and not desk.gang.released
    with pytest.raises(UsageError, match="its processes live") as told:
        pick([row], desk.run.run_id)
    assert str(rank.pid) in str(told.value.fix)
    for ident in marked(desk.run.run_id):
        ident.signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not desk.tick():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert desk.gang.released and not desk.run.path.exists(), "what was removed is not made again"
    with pytest.raises(UsageError, match="is gone") as told:
        pick([row], desk.run.run_id)
    assert "--rebuild" in str(told.value.fix)
    (tmp_path / "away").rename(desk.run.path)  # its shim waits for a place for its last record
    while try_read_json(desk.run.rank_record(1, 0)) is None or "ended" not in read_json(desk.run.rank_record(1, 0)):
        assert time.monotonic() < deadline + 60
        time.sleep(0.05)
