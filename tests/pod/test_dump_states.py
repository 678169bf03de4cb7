"""Dumps of real processes that are hard to ask: stuck, stopped, blocked, forked, spawned, orphaned, just born."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.remote.dump import DUMP_S, Dump, dump_run
from pods.remote.dumpgroups import RankDump
from pods.remote.stackdump import Asker, Target, stacks_of
from tests.pod.shimlab import Lab, until
from tests.pod.test_dump import SLEEPER, STUCK
from workloads.contract.process import catches, environ_of

FORKING = """
import os, time
def work():
    while True: time.sleep(0.05)
for _ in range(3):
    if os.fork() == 0: work()
print('up', flush=True)
while True: time.sleep(0.05)
"""
IN_VFORK = """
import ctypes
libc = ctypes.CDLL(None)
print('up', flush=True)
if libc.vfork() == 0:
    while True: libc.sleep(120)
"""
"""The parent is in state D until the child is gone, as in a driver that does not answer."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def dump(lab: Lab, *, watchdog: bool = False) -> Dump:
    by = "watchdog" if watchdog else "tester"
    return dump_run(lab.run, ranks=None, why="test", by=by, watchdog=watchdog)


def by_pid(found: Dump) -> dict[int, RankDump]:
    return {d.pid: d for d in found.dumps}


def test_a_rank_stuck_in_the_kernel_is_told_by_what_proc_says(lab: Lab) -> None:
    lab.python(IN_VFORK)
    lab.says(b"up")
    until(lambda: lab.rank().state() == "D")
    found = dump(lab)
    first = by_pid(found)[lab.rank().pid]
    assert "no dump: state D (uninterruptible, in the kernel), not signalled" in first.note
    assert "State: D (disk sleep)" in first.text and "state D" in found.summary
    assert any(f"rank 0 pid {first.pid}: no dump: state D" in note for note in found.notes)
    status = Path(f"/proc/{first.pid}/status").read_text()
    assert "ShdPnd:\t0000000000000000" in status  # no signal that would kill or dump it later


def test_sleeping_in_c_with_the_interpreter_locked(lab: Lab) -> None:
    lab.python("import ctypes\ndef wait():\n print('up', flush=True)\n ctypes.PyDLL(None).sleep(120)\nwait()")
    lab.says(b"up")
    found = dump(lab)
    assert found.dumps[0].how == "faulthandler" and found.summary == "rank 0 in wait at <string>:4"


def test_a_stopped_worker_hides_no_other(lab: Lab) -> None:
    lab.python(FORKING)
    lab.says(b"up")
    workers = [p for p in lab.marked() if p != lab.rank()]
    workers[0].signal(signal.SIGSTOP)
    until(lambda: workers[0].state() == "T")
    found = dump(lab)
    got = by_pid(found)
    assert [got[p.pid].how for p in (lab.rank(), *workers[1:])] == ["faulthandler"] * 3
    assert got[workers[0].pid].state == "T" and "no dump: state T (stopped)" in got[workers[0].pid].note
    assert found.summary.endswith(f", its pid {workers[0].pid} in state T")
    assert workers[0].state() == "T"


@pytest.mark.parametrize("how", ["signal.signal(signal.SIGUSR1, save)", "asyncio"])
def test_a_program_that_saves_and_exits_at_this_signal_does_not(lab: Lab, how: str) -> None:
    code = "import asyncio, os, signal, time\ndef save(*a):\n print('saved', flush=True)\n os._exit(0)\n"
    loop = "async def main():\n asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, save)\n"
    loop += " print('up', flush=True)\n await asyncio.sleep(60)\nasyncio.run(main())"
    lab.python(code + (loop if how == "asyncio" else f"{how}\n{SLEEPER}"))
    lab.says(b"up")
    first = dump(lab).dumps[0]
    assert first.how != "faulthandler" and first.note.startswith("no faulthandler on SIGUSR1")
    assert lab.rank().alive() and b"saved" not in lab.log()


BUSY = """
def down(n): return n if n <= 0 else down(n - 1)
class Box:
    def __init__(self, x): self.x = [x] * 3
    def get(self): return [y for y in self.x]
def count():
    for i in range(5): yield i
print('up', flush=True)
while True:
    down(20), [Box(i).get() for i in range(20)], sorted(range(10), key=lambda v: -v), sum(count())
"""


def newer() -> list[str]:
    """Newer Pythons of this machine: on PATH, or installed beside this one."""
    beside = (str(p) for p in Path(sys.base_prefix).parent.glob("3.1*/bin/python"))
    found = [*map(shutil.which, ("python3.12", "python3.13")), *beside]
    ask = "import sys; print(sys.version_info[:2] > (3, 11), end='')"
    runs = {p: subprocess.run([p, "-c", ask], capture_output=True, timeout=60).stdout for p in found if p}
    return sorted(p for p, said in runs.items() if said == b"True")


@pytest.mark.parametrize("python", [sys.executable, *(pytest.param(p, marks=pytest.mark.long) for p in newer())])
def test_a_rank_that_computes_survives_its_dumps(lab: Lab, python: str) -> None:
    """faulthandler alone kills Python 3.12 within some ten signals: it walks frames that are being made."""
    lab.start(lab.order([python, "-c", BUSY]))
    lab.says(b"up")
    target = Target(lab.rank(), 0, 1, True)
    for i in range(20):
        found = stacks_of(Asker(lab.run, "tester", "test", time.monotonic() + 60), target)
        assert found is not None and (found.how, found.note) == ("faulthandler", ""), (i, found, lab.story())
        assert "<module>" in found.text
    assert lab.rank().alive()


def test_one_that_computes_and_has_the_hard_handler_alone_is_not_signalled(lab: Lab) -> None:
    """A Python started with -S, which registers when orch's runtime is imported."""
    register = "from workloads.runtime import rankenv, stacks\nstacks.register(rankenv.RankEnv.read())\n"
    lab.start(lab.order([sys.executable, "-S", "-c", register + BUSY]))
    lab.says(b"up")
    assert catches(lab.rank().pid, signal.SIGUSR1)
    (first,) = dump(lab).dumps
    assert first.how != "faulthandler" and first.note.startswith("it computes, and SIGUSR1 may crash")


def test_a_blocked_signal_is_not_left_waiting(lab: Lab) -> None:
    code = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
    lab.python(code + SLEEPER)
    lab.says(b"up")
    first = dump(lab).dumps[0]
    assert first.how != "faulthandler" and first.note.startswith("it blocks SIGUSR1")
    assert "ShdPnd:\t0000000000000000" in Path(f"/proc/{first.pid}/status").read_text()


def test_a_signal_that_only_the_main_thread_blocks_is_taken_by_another(lab: Lab) -> None:
    code = "import signal, threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    lab.python(code + "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n" + SLEEPER)
    lab.says(b"up")
    first = dump(lab).dumps[0]
    assert (first.how, first.note) == ("faulthandler", "") and first.text.count("most recent call first") == 2


def test_spawned_workers_have_a_handler_of_their_own(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("""
import multiprocessing, time
def work(out):
    out.put('born')
    while True: time.sleep(0.05)
if __name__ == '__main__':
    spawn = multiprocessing.get_context('spawn')
    out = spawn.Queue()
    for _ in range(2): spawn.Process(target=work, args=(out,), daemon=True).start()
    for _ in range(2): out.get()
    print('up', flush=True)
    while True: time.sleep(0.05)
""")
    lab.start(lab.order([sys.executable, str(script)]))
    lab.says(b"up")
    found = dump(lab)
    workers = [d for d in found.dumps[1:] if "in work" in d.text]
    assert len(workers) == 2 and {d.how for d in found.dumps} == {"faulthandler"}, found.notes
    assert all("in <module>" in d.text and f"pid={d.pid} " in d.text for d in workers)


def test_what_left_the_session_and_what_lost_its_mark_are_found(lab: Lab) -> None:
    lab.sh(f"""
setsid sh -c '{sys.executable} -c "$CODE" & exit 0'
env -i {sys.executable} -I -c 'import time; time.sleep(120)' &
sleep 121 & : & echo shell; while :; do wait; done
""", env={"CODE": SLEEPER})  # fmt: skip
    lab.says(b"up")
    until(lambda: len(lab.marked()) >= 3)
    time.sleep(0.5)
    found = dump(lab)
    hows = sorted(d.how for d in found.dumps[1:])
    assert hows[1:] == ["facts", "faulthandler"] or hows == ["facts", "faulthandler", "py-spy"], hows
    (sleeper,) = [d for d in found.dumps if d.how == "facts"]
    assert sleeper.note.startswith("sleep (no Python): state S (sleeping)") and not sleeper.file
    assert any("no faulthandler" in d.note and not environ_of(d.pid) for d in found.dumps[1:])
    assert found.summary == "rank 0 in tick at <string>:4"  # a shell has no stack: its program speaks for it


def test_a_dead_worker_that_nobody_reaped_is_named(lab: Lab) -> None:
    lab.python("import os\nif os.fork() == 0: os._exit(9)\n" + SLEEPER)
    lab.says(b"up")
    found = dump(lab)
    assert [d.how for d in found.dumps] == ["faulthandler"]
    assert any(
        "is dead and not yet reaped (state Z)" in note and note.startswith("rank 0 pid ") for note in found.notes
    )


def test_a_rank_in_its_first_moments_is_never_killed(lab: Lab) -> None:
    """From before its exec on, again and again, until its handler is there."""
    lab.python("import time\nfor i in range(20): time.sleep(0.05)\n" + SLEEPER)
    rank, hows = lab.rank(), []
    end = time.monotonic() + 60
    while "faulthandler" not in hows and time.monotonic() < end:
        hows += [d.how for d in dump(lab).dumps]
        assert rank.alive(), hows
    assert hows[-1] == "faulthandler"
    lab.says(b"up")
    assert catches(rank.pid, signal.SIGUSR1) and "ended" not in lab.record()


def test_hung_ranks_delay_no_others(lab: Lab) -> None:
    codes = [SLEEPER, IN_VFORK, SLEEPER, STUCK, SLEEPER]
    for rank, code in enumerate(codes):
        lab.python(code, rank=rank)
    for rank in range(len(codes)):
        lab.says(b"up", rank)
    until(lambda: lab.rank(1).state() == "D")
    lab.rank(4).signal(signal.SIGSTOP)
    until(lambda: lab.rank(4).state() == "T")
    found = dump(lab)
    hows = {d.rank: d.how for d in found.dumps if d.is_rank}
    assert [hows[r] for r in (0, 2, 3)] == ["faulthandler"] * 3 and set(hows) == set(range(5))
    assert found.seconds < DUMP_S + 2
    assert "ranks 0, 2 in tick at <string>:4" in found.summary and "rank 3 in re.match at <string>:3" in found.summary
    assert found.groups[-1].ranks == (0, 2)  # the odd ones before
