"""Process identity on real processes: start time, zombies, marks, pidfd signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from workloads.contract.process import ProcId, catches, environ_of, marked, rank_mark


def wait_for(condition: object, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if callable(condition) and condition():
            return True
        time.sleep(0.01)
    return False


def test_identity_ends_with_the_process_and_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["sleep", "30"])
    ident = ProcId.of(child.pid)
    assert ident is not None and ident.alive()
    assert not ProcId(ident.pid, ident.start_time + 1, ident.boot_id).alive()
    assert not ProcId(ident.pid, ident.start_time, "another boot").alive()
    assert not ProcId(ident.pid, ident.start_time + 1, ident.boot_id).signal(signal.SIGKILL)
    assert ident.signal(signal.SIGKILL)
    assert wait_for(lambda: not ident.alive())  # a zombie: not reaped yet
    assert ProcId.of(child.pid) is None
    child.wait()
    assert not ident.signal(signal.SIGKILL)


def test_marks_reach_descendants_and_only_whole_components_match() -> None:
    mark = rank_mark("t-20261121T000000Z-0000", 1, 0)
    env = {**os.environ, "ORCH_MARK": mark}
    child = subprocess.Popen(["setsid", "sh", "-c", "sleep 30 & wait"], env=env)
    try:
        assert wait_for(lambda: len(marked(mark)) >= 2)
        assert environ_of(child.pid)["ORCH_MARK"] == mark
        assert len(marked("t-20261121T000000Z-0000")) >= 2
        assert marked("t-20261121T000000Z-000") == []
        assert marked(mark + "0") == []
    finally:
        for ident in marked(mark):
            ident.signal(signal.SIGKILL)
        child.wait()


def test_signal_handlers_are_seen_before_a_signal_is_sent() -> None:
    code = "import faulthandler,signal,time;faulthandler.register(signal.SIGUSR1);print(1,flush=True);time.sleep(30)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.read(1) == b"1"
        assert catches(child.pid, signal.SIGUSR1)
        assert not catches(child.pid, signal.SIGUSR2)
    finally:
        child.kill()
        child.communicate()
    assert not catches(child.pid, signal.SIGUSR1)
