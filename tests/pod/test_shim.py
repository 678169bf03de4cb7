"""The shim with real ranks: how they start, end, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.keeper.client import KeeperClient, running
from pods.remote.reap import reap_lost
from tests.pod.shimlab import ROOT, Lab, until
from workloads.contract.files import atomic_write_json
from workloads.contract.process import ProcId, environ_of
from workloads.contract.records import as_wire
from workloads.contract.rundir import OrchHome

ORPHAN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("orphan", os.getpid(), flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0.3)
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def test_a_normal_end(lab: Lab) -> None:
    shim = lab.sh("printf 'out\\n'; printf 'err' >&2; exec true")
    row = lab.ended()
    assert shim.wait(timeout=120) == 0
    assert (row["exit_code"], row["cause"], row["command"][0]) == (0, "exited", "sh")
    assert "signal" not in row and "error" not in row and row["oom"] is False and row["swept"] == []
    assert row["max_rss_mib"] > 0 and row["ended"] >= row["ts"] and row["pid"] != row["shim_pid"] == shim.pid
    assert lab.log() == b"out\nerr"
    for path in (lab.run.rank_log(0), lab.run.shim_log(0), lab.run.rank_record(1, 0)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_exit_codes_and_signals_are_told(lab: Lab) -> None:
    lab.sh("exit 75")
    lab.sh("kill -SEGV $$", rank=1)
    assert lab.ended(0)["exit_code"] == 75
    row = lab.ended(1)
    assert (row["signal"], row["cause"]) == (signal.SIGSEGV, "signalled") and "exit_code" not in row


@pytest.mark.parametrize(
    ("argv", "cwd", "words"),
    [
        (["python3.99", "x"], None, "python3.99: command not found"),
        (["/nowhere/at/all"], None, "/nowhere/at/all: no such file"),
        (["/etc/passwd"], None, "permission denied"),
        (["./no-interpreter"], None, "interpreter"),
        (["./not-a-program"], None, "not a program of this machine"),
        (["true"], "/nowhere", "/nowhere"),
        (["true", "nul\0byte"], None, "null byte"),
        ([""], None, "no command"),
    ],
)
def test_a_program_that_cannot_start_is_told(lab: Lab, argv: list[str], cwd: str | None, words: str) -> None:
    for name, text in (("no-interpreter", "#!/nowhere/sh\n"), ("not-a-program", "hello\n")):
        path = lab.run.path / name
        path.write_text(text)
        path.chmod(0o700)
    lab.start(lab.order(argv, cwd=cwd or str(lab.run.path)))
    row = lab.ended()
    assert row["cause"] == "spawn-failed" and words in row["error"], row
    assert "pid" not in row and "exit_code" not in row and "signal" not in row


def test_arguments_and_environment_arrive_whole(lab: Lab) -> None:
    words = ["", " ", "a b", "new\nline", "'\"`$(x)\\", "日本語 \u202e", "--rank=0", "x" * 100_000, "*"]
    code = "import os,sys,json;print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    order = lab.order([sys.executable, "-I", "-c", code, *words], env={"ODD": "a=b\nc", "EMPTY": ""})
    lab.start(order)
    lab.ended()
    import json

    argv, env, cwd = json.loads(lab.log())
    assert argv == words and cwd == str(lab.run.path)
    assert {k: v for k, v in env.items() if k != "LC_CTYPE"} == order.env  # Python adds LC_CTYPE itself


def test_the_rank_starts_clean(lab: Lab) -> None:
    """No inherited descriptors, default signals, nothing on stdin, a session of its own."""
    code = """
import os, signal
print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:4], os.getsid(0) == os.getpid(), os.read(0, 1))
print([l.split()[1] for l in open('/proc/self/status') if l[:6] in ('SigBlk', 'SigIgn')])
print(open('/proc/self/oom_score_adj').read().strip())
"""
    lab.start(lab.order([sys.executable, "-I", "-c", code]))
    lab.ended()
    first, signals, oom = lab.log().decode().splitlines()
    assert first == "[0, 1, 2, 3] True b''"  # 3 is the listing itself
    assert eval(signals)[0] == "0" * 16
    ignored = {n for n in range(1, 65) if int(eval(signals)[1], 16) >> (n - 1) & 1}
    # Python ignores two of its own; 32 and 33 are the C library's, and sigaction(2) wrappers refuse to touch them
    assert ignored <= {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}
    assert oom == "500"


def test_the_log_is_byte_exact(lab: Lab) -> None:
    code = "import os;[os.write(1+(i%2), bytes(range(256))*64) for i in range(256)]"
    lab.python(code)
    lab.ended()
    assert lab.log() == bytes(range(256)) * 64 * 256


def test_what_a_rank_leaves_is_swept(lab: Lab) -> None:
    lab.python(ORPHAN)
    row = lab.ended()
    orphan = int(lab.log().split()[1])
    assert row["exit_code"] == 0 and row["swept"] == [orphan] and row["stayed"] == []
    assert ProcId.of(orphan) is None and lab.marked() == []


def test_an_orphan_without_the_mark_is_swept_too(lab: Lab) -> None:
    lab.sh("env -i setsid sleep 60 & sleep 0.3; env -i sh -c 'sleep 61 & echo $!'")
    row = lab.ended()
    assert len(row["swept"]) == 2 and row["stayed"] == []


LAUNCHER = """
import signal, subprocess, sys, time
from pathlib import Path
from pods.keeper.client import ensure_keeper
from workloads.contract.rundir import OrchHome
home, order, tree, end = sys.argv[1:]
print(subprocess.Popen(["env", "-i", "setsid", "sleep", "602"]).pid, flush=True)
ensure_keeper(OrchHome(Path(home)), sys.executable, Path(tree)).spawn(Path(order))
if end == "killed":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while end == "killed" or not Path(end).exists():
    time.sleep(0.05)
"""


@pytest.mark.parametrize("end", ["done", "killed"])
def test_a_keeper_that_a_rank_started_outlives_it_with_the_runs_it_keeps(lab: Lab, tmp_path: Path, end: str) -> None:
    """`orch launch` in a rank: whoever has no better parent is adopted by the rank's shim."""
    home = OrchHome(tmp_path / "home")
    home.runs.mkdir(parents=True)
    inner, go = Lab.make(home.runs), tmp_path / "go"
    atomic_write_json(inner.run.run_json, {"v": 1, "cluster": "c1", "pods": [], "versions": {}, "tree": str(ROOT)})
    atomic_write_json(inner.run.status, {"state": "succeeded"})  # nobody needs Ray for it
    order = inner.order(["sh", "-c", "env -i sleep 601 & echo $!; exec sleep 600"])
    path = inner.run.rank_order(1, 0)
    atomic_write_json(path, as_wire(order))
    argv = [sys.executable, "-c", LAUNCHER, str(home.path), str(path), str(ROOT), str(go) if end == "done" else end]
    shim = lab.start(lab.order(argv))
    left = list[ProcId]()
    try:
        until(lambda: inner.log().endswith(b"\n"), story=lambda: (lab.story(), inner.story()))
        keeper, below, own = running(home), ProcId.of(int(inner.log())), ProcId.of(int(lab.log()))
        assert keeper is not None and below is not None and own is not None
        left = [ProcId(inner.record()["shim_pid"], inner.record()["shim_start_time"], keeper["boot_id"]), below]
        if end == "done":
            go.touch()
        else:
            shim.terminate()
        row = lab.ended()
        assert not own.alive() and row["stayed"] == [], "its own child bears no mark, and was swept"
        assert running(home) == keeper and inner.rank().alive() and all(p.alive() for p in left)
    finally:
        if running(home) is not None:
            KeeperClient(home).down()
        for ident in left:
            ident.signal(signal.SIGKILL)
        inner.close()


def test_kill_0_in_a_script_does_not_reach_the_shim(lab: Lab) -> None:
    lab.sh("sleep 60 & kill -TERM 0; wait")
    row = lab.ended()
    assert (row["signal"], row["cause"]) == (signal.SIGTERM, "signalled")


def test_a_killed_shim_takes_its_rank_along_and_the_reaper_finishes(lab: Lab) -> None:
    shim = lab.python(ORPHAN, env={}, rank=0)
    lab.says(b"orphan")
    rank, orphan = lab.rank(), ProcId.of(int(lab.log().split()[1]))
    assert orphan is not None and reap_lost(lab.run, 1) == []
    os.kill(shim.pid, signal.SIGKILL)
    shim.wait(timeout=120)
    until(lambda: not rank.alive())
    assert orphan.alive() and "ended" not in lab.record()
    assert reap_lost(lab.run, 1) == [0]
    row = lab.record()
    assert row["cause"] == "shim-lost" and row["swept"] == [orphan.pid] and "shim" in row["error"]
    assert not orphan.alive() and reap_lost(lab.run, 1) == []


def test_a_reboot_is_told_and_nothing_is_signalled(lab: Lab) -> None:
    from workloads.contract.files import atomic_write_json

    lab.sh("exit 0")
    row = lab.ended()
    lab.shims[0].wait(timeout=120)
    me = ProcId.me()
    old = {k: v for k, v in row.items() if k not in ("ended", "exit_code", "cause")}
    old |= {"pid": me.pid, "start_time": me.start_time, "boot_id": "11111111-2222-3333-4444-555555555555"}
    atomic_write_json(lab.run.rank_record(1, 0), old)
    assert reap_lost(lab.run, 1) == [0]
    assert lab.record()["cause"] == "shim-lost" and "boot id" in lab.record()["error"]


def test_one_order_is_carried_out_once(lab: Lab) -> None:
    order = lab.order(["sh", "-c", "echo once; sleep 1.5"])
    shims = [lab.start(order) for _ in range(4)]
    lab.ended()
    assert [s.wait(timeout=120) for s in shims] == [0] * 4
    assert lab.start(order).wait(timeout=120) == 0  # and not again after its end
    assert lab.log() == b"once\n"


def test_a_probe_of_the_lock_does_not_turn_a_shim_away(lab: Lab) -> None:
    import fcntl

    fd = os.open(lab.run.rank_lock(1, 0), os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    lab.sh("echo here")
    time.sleep(0.5)
    os.close(fd)
    lab.ended()
    assert lab.log() == b"here\n"


def test_sigterm_to_the_shim_stops_the_rank(lab: Lab) -> None:
    shim = lab.sh("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    lab.says(b"up")
    os.kill(shim.pid, signal.SIGHUP)  # ignored
    os.kill(shim.pid, signal.SIGTERM)
    row = lab.ended()
    assert (row["exit_code"], row["cause"]) == (3, "stopped") and b"bye" in lab.log()


def test_the_rank_environment_is_visible_under_its_mark(lab: Lab) -> None:
    lab.sh("sleep 30")
    rank = lab.rank()
    assert until(lambda: environ_of(rank.pid).get("RANK")) == "0" and lab.marked()[0].pid == rank.pid


def test_no_order_is_a_message_and_not_a_traceback(tmp_path: Path) -> None:
    import subprocess

    bad = tmp_path / "rank0.order.json"
    bad.write_text('{"v":1,"run":"x"}')
    for args in ([str(bad)], [str(tmp_path / "none")], []):
        got = subprocess.run(
            [sys.executable, "-m", "workloads.shim", *args], capture_output=True, text=True, timeout=120
        )
        assert got.returncode == 2 and "Traceback" not in got.stderr and got.stderr
