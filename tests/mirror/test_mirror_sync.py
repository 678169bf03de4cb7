"""The copy of a run that lies elsewhere: byte for byte what is there, through cuts, rotations and two readers."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from orchestrator.runs.mirror import INDEX_NAME, Index, Mirror
from orchestrator.runs.source import fetch
from orchestrator.runs.sync import Ask, sync
from pods.remote.runfiles import LOGS, STATUS, kind_of
from tests.mirror.conftest import Far, same
from workloads.contract.errors import RemoteError, UnreachableError
from workloads.contract.files import atomic_write_json


def filled(far: Far, *, lines: int = 3000):
    made = far.make()
    made.status("running", "all ranks beat", supervisor=made.supervised())
    for rank in (0, 1):
        made.record(rank)
        made.log(rank, b"".join(b"step %d | loss %d\n" % (i, i) for i in range(lines)))
        for i in range(30):
            made.beat(rank, time.time() - 30 + i, step=i, steps=100, loss=1.0)
    made.event(1, "state", "all ranks beat", frm="starting", to="running")
    made.run.training_csv.write_text("step,loss\n1,2.0\n")
    made.run.ledger.write_text('{"step":1}\n')
    made.run.env_json.write_text("{}")
    (made.run.stackdumps / "stackdump_rank0_20261121T000000Z.txt").write_text("Thread 1\n")
    (made.run.tensorboard / "events").mkdir(parents=True)
    (made.run.tensorboard / "events" / "events.out.1").write_bytes(os.urandom(1000))
    return made


def test_everything_arrives_and_nothing_that_should_not(far):
    made = filled(far)
    made.run.secrets.write_text('{"HF_TOKEN": "canary-canary"}')
    made.run.code.mkdir()
    (made.run.code / "train.py").write_text("secret code")
    made.run.rank_order(1, 0).write_text('{"env": {}}')
    checkpoint = made.run.checkpoint(10)
    checkpoint.mkdir()
    made.run.manifest(checkpoint).write_text("{}")
    (checkpoint / "model.pt").write_bytes(b"weights")
    (made.run.logs / "rank0.log.swp").write_text("foreign")
    (made.run.logs / "rank7.log").symlink_to("/etc/passwd")
    source = far.source(made.run)
    fetch(source, "all")
    assert set(same(made.run, source.run)) == {
        ".secrets.json", "code/train.py", "ranks/a1/rank0.order.json", "checkpoints/step_00000010/model.pt",
        "logs/rank0.log.swp", "logs/rank7.log",
    }  # fmt: skip
    assert not any("canary" in p.read_text(errors="replace") for p in far.home.path.rglob("*") if p.is_file())
    assert (source.run.path.stat().st_mode & 0o777, far.home.mirror.stat().st_mode & 0o077) == (0o700, 0)


def test_a_second_look_costs_what_is_new(far):
    made = filled(far)
    source = far.source(made.run)
    fetch(source, "all")
    before = source.size_bytes
    fetch(source, "all")
    assert source.size_bytes == before
    made.log(1, b"one more\n")
    made.status("running", "still", supervisor=made.supervised())
    fetch(source, "all")
    assert source.size_bytes - before == 9 + made.run.status.stat().st_size
    assert same(made.run, source.run) == []


def test_status_takes_the_tail_and_logs_fill_the_front(far):
    made = filled(far)
    line = b'{"seq":%d,"ts":1.0,"attempt":1,"who":"supervisor","what":"note","why":"' + b"x" * 200 + b'"}\n'
    with made.run.events.open("wb") as f:
        f.writelines(line % i for i in range(5000))
    source = far.source(made.run)
    fetch(source, "status")
    size, floor = made.run.events.stat().st_size, source.floor(source.run.events)
    assert source.run.events.stat().st_size == size and size - 65536 <= floor < size
    tail = made.run.events.read_bytes()[floor:]
    assert source.run.events.read_bytes()[floor:] == tail and tail.startswith(b'{"seq":')
    assert source.run.events.stat().st_blocks * 512 < 200_000
    assert not source.run.rank_log(0).exists()
    fetch(source, "status", {"events.jsonl": None})
    assert source.floor(source.run.events) == 0 and same(made.run, source.run) != []
    fetch(source, "all")
    assert same(made.run, source.run) == []


def test_the_last_lines_of_a_huge_log(far):
    made = filled(far)
    with made.run.rank_log(0).open("wb") as f:
        f.truncate(10 << 30)
        f.seek(0, 2)
        f.write(b"\n" + b"".join(b"line %d\n" % i for i in range(1000)))
    source = far.source(made.run)
    fetch(source, "status", {"logs/rank0.log": 20})
    assert source.size_bytes < 200_000
    floor = source.floor(source.run.rank_log(0))
    with source.run.rank_log(0).open("rb") as f:
        f.seek(floor)
        assert f.read() == b"".join(b"line %d\n" % i for i in range(980, 1000))
    fetch(source, "status", {"logs/rank0.log": 40})
    with source.run.rank_log(0).open("rb") as f:
        f.seek(source.floor(source.run.rank_log(0)))
        assert f.read(9) == b"line 960\n"
    made.log(0, b"z" * (1 << 20) + b"\nend\n")
    fetch(source, "status", {"logs/rank0.log": 1})
    assert source.size_bytes < 500_000
    assert len(Index.read(source.run).files["logs/rank0.log"][2]) == 2


def test_stretches_become_one(far):
    made = filled(far)
    log = made.run.rank_log(0)
    log.write_bytes(b"".join(b"%07d\n" % i for i in range(40_000)))
    source = far.source(made.run)
    for _ in range(3):
        fetch(source, "status", {"logs/rank0.log": 10})
        made.log(0, b"".join(b"more %d\n" % i for i in range(30_000)))
    fetch(source, "status", {"logs/rank0.log": 10})
    assert len(Index.read(source.run).files["logs/rank0.log"][2]) == 4
    fetch(source, "logs")
    assert Index.read(source.run).files["logs/rank0.log"][2] == [[0, log.stat().st_size]]
    assert source.run.rank_log(0).read_bytes() == log.read_bytes()


@pytest.mark.parametrize("how", ["truncated", "replaced", "rewritten", "shrunk and grown"])
def test_a_log_that_is_not_what_it_was_comes_from_its_beginning(far, how):
    made = filled(far)
    source = far.source(made.run)
    fetch(source, "logs")
    log, old_inode = made.run.rank_log(0), source.run.rank_log(0).stat().st_ino
    if how == "truncated":
        os.truncate(log, 0)
        made.log(0, b"fresh\n")
    elif how == "replaced":
        log.with_name("new").write_bytes(log.read_bytes() + b"and more\n")
        log.with_name("new").replace(log)
    elif how == "rewritten":
        log.write_bytes(bytes(reversed(log.read_bytes())))
    else:
        size = log.stat().st_size
        os.truncate(log, size // 2)
        made.log(0, os.urandom(size))
    fetch(source, "logs")
    assert source.run.rank_log(0).read_bytes() == log.read_bytes()
    assert source.run.rank_log(0).stat().st_ino != old_inode


def test_what_is_removed_there_is_removed_here_but_logs_and_pulled_data_stay(far):
    made = filled(far)
    atomic_write_json(made.run.halt, {"now": False})
    for step in (1, 2):
        made.run.checkpoint(step).mkdir()
        made.run.manifest(made.run.checkpoint(step)).write_text("{}")
    source = far.source(made.run)
    fetch(source, "all")
    (source.run.checkpoint(2) / "model.pt").write_bytes(b"pulled")
    made.run.halt.unlink()
    made.run.rank_log(1).unlink()
    for step in (1, 2):
        made.run.manifest(made.run.checkpoint(step)).unlink()
    fetch(source, "all")
    assert not source.run.halt.exists() and source.run.rank_log(1).exists()
    assert not source.run.checkpoint(1).exists() and source.run.manifest(source.run.checkpoint(2)).exists()


@pytest.mark.long
def test_cut_at_random_moments_it_is_the_same_in_the_end(far):
    made = filled(far)
    dice = random.Random(7)
    for rank in (0, 1):
        made.log(rank, dice.randbytes(9 << 20))
    source, cuts = far.source(made.run), 0
    for turn in range(12):
        far.pod.connect()
        pid, before = int(far.pod.hello["pid"]), time.monotonic()
        cut_at = before + dice.uniform(0.0, 0.08)
        import threading

        killer = threading.Timer(cut_at - before, os.kill, (pid, 9))
        killer.start()
        try:
            fetch(source, "all")
        except UnreachableError:
            cuts += 1
        killer.join()
        made.log(turn % 2, dice.randbytes(1 << 20))
    fetch(source, "all")
    assert cuts >= 3
    assert same(made.run, source.run) == []


def test_a_crash_between_bytes_and_index_doubles_nothing(far, monkeypatch):
    made = filled(far)
    source = far.source(made.run)
    fetch(source, "all")
    made.log(0, b"after\n" * 100)
    with monkeypatch.context() as patch:
        patch.setattr(type(source.mirror), "_write_index", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            source.refresh("all")
    again = far.source(made.run)
    fetch(again, "all")
    assert same(made.run, again.run) == []


def test_two_who_fill_one_copy(far):
    from pods.pod import FarPod
    from pods.transport.local import LocalTransport

    made = filled(far)
    other = FarPod("box", LocalTransport(), root=str(far.there.path))
    first, second = far.source(made.run), far.source(made.run)
    second._connect = lambda: other
    for turn in range(6):
        made.log(turn % 2, b"turn %d\n" % turn * 5000)
        first.mirror.have()
        first.refresh("logs") if turn % 3 else second.refresh("logs")
        second.refresh("logs")
        if turn == 3:
            os.truncate(made.run.rank_log(0), 0)
    fetch(first, "all")
    fetch(second, "all")
    other.close()
    assert same(made.run, first.run) == []


def test_a_copy_that_was_cut_or_emptied_here_is_mended(far):
    made = filled(far)
    source = far.source(made.run)
    fetch(source, "all")
    os.truncate(source.run.rank_log(0), 10)
    source.run.status.unlink()
    (source.run.path / INDEX_NAME).write_text("{torn")
    fetch(source, "all")
    assert same(made.run, source.run) == []


def test_a_run_that_is_not_there(far):
    made = filled(far)
    source = far.source(made.run)
    fetch(source)
    made.run.path.rename(far.there.runs / "elsewhere")
    fetch(source)
    view = source.view()
    assert "gone from pod box; copy of" in view.words and view.status is not None
    other = far.make("other")
    missing = far.source(other.run)
    other.run.path.rename(far.there.runs / "elsewhere2")
    with pytest.raises(RemoteError, match="is not on pod box"):
        missing.refresh()


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", ".secrets.json", "code/x", "logs/../run.json", "ranks/a1/rank0.order.json",
     "logs/rank0.log\n", "logs/rank٣.log", "checkpoints/step_00000001/model.pt", "requests/x.json", "tb/.hidden",
     "tb/a/b/c/d/e", "", ".mirror.json",
     "stackdumps/a\x1b[2J", "run.json/", "tb//x", "logs/rank" + "1" * 500 + ".log"],
)  # fmt: skip
def test_names_that_are_never_copied(name):
    assert kind_of(name) is None


def test_names_that_are(far):
    made = filled(far)
    request = made.run.request("halt", "0123abcd")
    for path in (made.run.halt, made.run.archived_halt(2), made.run.halt_ack(3), request, made.run.ack_of(request),
                 made.run.manifest(made.run.checkpoint(7)), made.run.stackdump(1, watchdog=True)):  # fmt: skip
        assert kind_of(path.relative_to(made.run.path).as_posix()) is not None, path
    assert json.loads(made.run.run_json.read_text())["run"] == made.run.run_id


def test_the_runs_of_one_round_are_not_mixed(far):
    """Each of them has files that are sent whole and files that grow, and each gets its own bytes."""
    made = [far.make(name) for name in ("ant", "bee", "cow")]
    for turn in range(3):
        for m in made:
            name = m.run.run_id
            m.status("running", f"{name} in turn {turn}")
            m.event(turn, "note", f"{name} " * (turn + 1) * len(name))
            m.beat(0, 100.0 + turn, step=turn)
            m.log(0, f"{name} printed {turn}\n".encode())
        asks = {m.run.run_id: Ask(Mirror(far.home.mirrored(m.run.run_id), "box"), (STATUS, LOGS)) for m in made}
        while sync(far.home, far.pod, asks, living=True, newest=10, listing=True).more:
            pass
        for m in made:
            copy = far.home.mirrored(m.run.run_id)
            for path in sorted(p for p in copy.path.rglob("*") if p.is_file() and not p.name.startswith(".mirror")):
                assert path.read_bytes() == (m.run.path / path.relative_to(copy.path)).read_bytes(), path
            assert m.run.run_id in copy.status.read_text() and copy.events.read_text().count("\n") == turn + 1
