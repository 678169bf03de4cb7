"""Stack dumps of real ranks in the states they get stuck in, and grouping of equal stacks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.remote import dump as dumping
from pods.remote import stackdump
from pods.remote.dump import Dump, dump_run
from pods.remote.dumpfiles import own_file
from pods.remote.dumpgroups import RankDump, group
from pods.remote.stacktext import normalised
from tests.pod.shimlab import SITE, Lab, until
from workloads.contract.files import atomic_write_json
from workloads.contract.process import MARK, ProcId, catches, environ_of, marked, rank_mark

SLEEPER = "import time\ndef tick():\n    print('up', flush=True)\n    while True: time.sleep(0.05)\ntick()"
STUCK = "import re\nprint('up', flush=True)\nre.match('(a+)+$', 'a' * 60 + 'b')"
HAS_PY_SPY = bool(shutil.which("py-spy") or Path(sys.executable).with_name("py-spy").exists())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def dump(lab: Lab, ranks: list[int] | None = None) -> list[RankDump]:
    return dump_run(lab.run, ranks=ranks, why="test", by="tester").dumps


def test_a_plain_script_is_dumped_and_goes_on(lab: Lab) -> None:
    lab.python(SLEEPER)
    lab.says(b"up")
    (first,) = dump(lab)
    (second,) = dump(lab)
    assert (first.how, first.pid, first.note) == ("faulthandler", lab.rank().pid, "")
    assert (
        "in tick" in first.text and first.text.startswith("=== orch stack dump run=lab-") and "by=tester" in first.text
    )
    whole = (lab.run.stackdumps / first.file).read_text()
    assert whole.count("in tick") == 2 and whole == first.text + second.text
    assert lab.rank().alive()


def test_a_rank_that_holds_the_gil_in_c_is_dumped(lab: Lab) -> None:
    lab.python(STUCK)
    lab.says(b"up")
    time.sleep(0.3)
    (got,) = dump(lab)
    assert got.how == "faulthandler" and "in match" in got.text


def test_a_stopped_rank_is_not_signalled(lab: Lab) -> None:
    lab.python(SLEEPER)
    lab.says(b"up")
    lab.rank().signal(signal.SIGSTOP)
    until(lambda: lab.rank().state() == "T")
    (got,) = dump(lab)
    assert "no dump: state T" in got.note and got.how in ("py-spy", "none")
    if HAS_PY_SPY and os.geteuid() == 0:
        assert got.how == "py-spy" and "tick" in got.text
    assert (lab.run.stackdumps / got.file).read_text() == got.text
    assert not lab.run.stackdump(0, 0.0).read_text()
    assert lab.rank().state() == "T"


def test_a_rank_that_is_no_python_lives_on(lab: Lab) -> None:
    lab.start(lab.order(["sleep", "60"]))
    rank = lab.rank()
    until(lambda: environ_of(rank.pid).get("RANK"))
    (got,) = dump(lab)
    assert got.how == "none" and "no faulthandler" in got.note and "Name: sleep" in got.text
    time.sleep(0.2)
    assert rank.alive()


def test_a_shell_with_a_trap_is_not_disturbed_and_its_python_is_dumped(lab: Lab) -> None:
    script = f"trap 'echo trapped' USR1; echo shell; {sys.executable} -c \"$CODE\" & while :; do wait; done"
    lab.sh(script, env={"CODE": SLEEPER})
    lab.says(b"up")
    shell, python = dump(lab)
    assert shell.how != "faulthandler" and catches(shell.pid, signal.SIGUSR1)
    assert python.how == "faulthandler" and "in tick" in python.text and python.pid != shell.pid
    time.sleep(0.2)
    assert b"trapped" not in lab.log()


def test_a_python_that_closed_the_file_is_not_signalled(lab: Lab) -> None:
    """Else faulthandler would write into whatever file got the same number since."""
    lab.python("import os\nos.closerange(3, 100)\nf = open('data', 'wb')\n" + SLEEPER)
    lab.says(b"up")
    (got,) = dump(lab)
    assert got.how != "faulthandler" and (lab.run.path / "data").read_bytes() == b""


def test_forked_workers_are_dumped_after_their_rank(lab: Lab) -> None:
    code = """
import os, time
def work():
    while True: time.sleep(0.05)
for _ in range(3):
    if os.fork() == 0: work()
print('up', flush=True)
while True: time.sleep(0.05)
"""
    lab.python(code)
    lab.says(b"up")
    got = dump(lab)
    assert [d.how for d in got] == ["faulthandler"] * 4 and got[0].pid == lab.rank().pid
    assert all("in work" in d.text and f"pid={d.pid} " in d.text for d in got[1:])


def test_another_signal_may_be_asked_for(lab: Lab) -> None:
    lab.python(SLEEPER, env={"ORCH_DUMP_SIGNAL": "40"})
    lab.says(b"up")
    (got,) = dump(lab)
    assert got.how == "faulthandler" and "in tick" in got.text
    assert not catches(got.pid, signal.SIGUSR1) and lab.rank().alive()


def test_a_signal_that_kills_is_never_asked_for(lab: Lab) -> None:
    lab.python(SLEEPER, env={"ORCH_DUMP_SIGNAL": str(int(signal.SIGSEGV))})
    lab.says(b"up")
    (got,) = dump(lab)
    assert got.how == "faulthandler" and lab.rank().alive()


def test_a_dump_file_elsewhere_is_not_written(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "stackdump_rank0_20261121T000000Z.txt"
    lab.python(SLEEPER, env={"ORCH_STACKDUMP": str(outside)})
    lab.says(b"up")
    (got,) = dump(lab)
    assert got.how != "faulthandler" and outside.read_bytes() == b"" and lab.rank().alive()
    good = lab.run.stackdump(0, 0.0)
    assert own_file(lab.run, {"ORCH_STACKDUMP": str(good)}) == good
    good.symlink_to(outside)
    for path in (good, lab.run.stackdumps / "x.txt", lab.run.stackdumps / ".." / "events.jsonl"):
        assert own_file(lab.run, {"ORCH_STACKDUMP": str(path)}) is None
    assert own_file(lab.run, {}) is None


def test_many_threads(lab: Lab) -> None:
    code = """
import threading, time
for _ in range(300): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
    lab.python(code + SLEEPER)
    lab.says(b"up")
    (got,) = dump(lab)
    assert got.how == "faulthandler" and got.text.count("Thread 0x") >= 90 and got.text.endswith("\n")


def test_ended_ranks_and_foreign_records_are_left_out(lab: Lab) -> None:
    lab.sh("exit 0")
    lab.ended()
    lab.run.rank_record(1, 1).write_text('{"pid": 1}')
    lab.run.rank_record(1, 2).write_text("not json")
    assert dump(lab) == [] and dump_run(lab.run, ranks=[7], why="", by="").dumps == []


ALONE = "import time; time.sleep(300)"
WITH_WORKERS = "import os, time\nfor _ in range(2):\n    if os.fork() == 0: break\ntime.sleep(300)"


@contextlib.contextmanager
def many_ranks(lab: Lab, code: str, processes: int) -> Iterator[None]:
    """64 ranks of one plain Python each, and what it forks: without shims, which would be 64 Pythons more."""
    me = ProcId.me()
    children = []
    try:
        for rank in range(64):
            env = {
                MARK: rank_mark(lab.run.run_id, 1, rank),
                "ORCH_STACKDUMP": str(lab.run.stackdump(rank, 0.0)),
                "PYTHONPATH": str(SITE),
            }
            child = subprocess.Popen([sys.executable, "-c", code], env=env)
            children.append(child)
            ident = ProcId.of(child.pid)
            assert ident is not None
            row = {"pid": ident.pid, "start_time": ident.start_time, "boot_id": me.boot_id}
            atomic_write_json(lab.run.rank_record(1, rank), row, durable=False)
        until(lambda: all(catches(c.pid, signal.SIGUSR1) for c in children), 60)
        until(lambda: len(marked(lab.run.run_id)) == processes, 60)
        time.sleep(1.0)  # all are asleep in the same line now
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def told(found: Dump) -> None:
    processes = len(found.dumps)
    print(f"\n64 ranks, {processes} processes: {found.seconds:.2f} s (limit 5 s) on {os.cpu_count()} cores")


def test_64_ranks_are_asked_at_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with many_ranks(lab, ALONE, 64):
        found = dump_run(lab.run, ranks=None, why="test", by="tester")
        told(found)
        assert [d.rank for d in found.dumps] == list(range(64)) and {d.how for d in found.dumps} == {"faulthandler"}
        assert [(g.ranks, g.where) for g in found.groups] == [(tuple(range(64)), "<string>:1")]
        assert found.summary == "64 ranks at <string>:1"
        monkeypatch.setattr(stackdump, "QUIET_S", 0.5)  # one after the other: 32 s
        monkeypatch.setattr(dumping, "DUMP_S", 30.0)
        slow = dump_run(lab.run, ranks=None, why="test", by="tester")
        assert {d.how for d in slow.dumps} == {"faulthandler"} and slow.seconds < 16


@pytest.mark.long
def test_64_ranks_with_two_workers_each(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with many_ranks(lab, WITH_WORKERS, 192):
        told(dump_run(lab.run, ranks=None, why="test", by="tester"))
        monkeypatch.setattr(dumping, "DUMP_S", 30.0)
        found = dump_run(lab.run, ranks=None, why="test", by="tester")
        assert len(found.dumps) == 192 and {d.how for d in found.dumps} == {"faulthandler"}, found.notes
        assert [g.ranks for g in found.groups] == [tuple(range(64))]


def of(rank: int, text: str, pid: int = 1) -> RankDump:
    header = f"=== orch stack dump run=r rank={rank} attempt=1 pid={pid} utc=x by=y why=z ===\n"
    return RankDump(rank, pid, "faulthandler", "f", header + text)


def test_equal_stacks_are_shown_once_and_the_odd_one_first() -> None:
    a = 'Current thread 0x00007f{:010x} (most recent call first):\n  File "t.py", line 7 in reduce\n'
    b = 'Thread 0x1 (most recent call first):\n  File "t.py", line 9 in load\n'
    dumps = [of(r, b if r == 2 else a.format(r), pid=100 + r) for r in range(4)]
    groups = group(dumps)
    assert [g.ranks for g in groups] == [(2,), (0, 1, 3)]
    assert "line 9 in load" in groups[0].text and "rank=0" in groups[1].text
    assert group([]) == []
    assert group([of(0, b), of(0, b), of(1, b)])[0].ranks == (0,)  # a rank with a worker is not one without


def test_an_answer_stays_small_enough_to_be_read() -> None:
    groups = group([of(r, f"function_{'x' * r}\n" * 50_000) for r in range(8)])
    assert len(groups) == 8 and sum(len(g.text) for g in groups) < 500_000 and "cut here" in groups[0].text


def test_py_spy_texts_of_equal_stacks_are_equal() -> None:
    text = 'Process {0}: python t.py --rank {0}\nPython v3.11.7\n\nThread {0} (idle): "MainThread"\n    tick (t.py:3)\n'
    assert normalised(text.format(17)) == normalised(text.format(4711))
