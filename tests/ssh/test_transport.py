"""Commands, processes and files over one connection to a real sshd: results, bounds, losses."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path, PurePosixPath

import pytest

from pods.pod import FarPod
from pods.transport.script import MAX_OUTPUT_BYTES
from tests.lab.sshd import Sshd
from tests.ssh.conftest import Connect, MakeSshd
from workloads.contract.errors import RemoteError, UnreachableError, UsageError


def connections(sshd: Sshd) -> int:
    return sshd.log.read_text().count("Accepted publickey")


def test_exit_codes_and_signals(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    for script, code in (("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", -15), ("kill -9 $$", -9)):
        assert transport.run(["sh", "-c", script], timeout_s=60).exit_code == code, script
    assert transport.run(["no-such-program-here"], timeout_s=60).exit_code == 127
    assert transport.run(["exit", "3"], timeout_s=60).exit_code == 127, "words of the shell are no programs"
    assert transport.run(["/etc/passwd"], timeout_s=60).exit_code == 126
    assert connections(sshd) == 1


def test_large_streams_in_both_directions_at_once(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    data = os.urandom(1 << 20).hex().encode()
    done = transport.run(["sh", "-c", "tee /dev/stderr"], timeout_s=20, stdin=data)
    assert done.stdout.encode() == data and done.stderr.encode() == data
    done = transport.run(["sh", "-c", "head -c 9000000 /dev/zero; echo end >&2"], timeout_s=60)
    assert (len(done.stdout), done.stderr, done.exit_code) == (MAX_OUTPUT_BYTES, "end\n", 0)


def test_input_that_nobody_reads_does_not_hold_the_command_up(sshd: Sshd, connect: Connect) -> None:
    done = connect(sshd).run(["sh", "-c", "exec <&-; echo done"], timeout_s=10, stdin=b"x" * 8_000_000)
    assert (done.stdout, done.exit_code) == ("done\n", 0)


def test_a_child_that_keeps_the_streams_does_not_hold_the_result_up(sshd: Sshd, connect: Connect) -> None:
    started = time.monotonic()
    done = connect(sshd).run(["sh", "-c", "sleep 60 & echo $!"], timeout_s=30)
    assert done.ok and time.monotonic() - started < 30
    assert int(done.stdout) in sshd.commands()


def test_a_command_that_does_not_end_costs_its_time_and_no_more(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    transport.connect()
    started = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        transport.run(["sleep", "60"], timeout_s=0.5)
    assert caught.value.code == "E-SSH-041" and "sleep" in caught.value.what
    assert 0.4 < time.monotonic() - started < 30
    assert transport.run(["true"], timeout_s=60).ok
    assert connections(sshd) == 1


def test_refused_words_never_reach_the_pod(sshd: Sshd, connect: Connect) -> None:
    with pytest.raises(UsageError):
        connect(sshd).run(["echo", "a\0b"], timeout_s=60)
    with pytest.raises(UsageError):
        connect(sshd).put(b"", PurePosixPath("/tmp/a\0b"), timeout_s=60)
    assert "Connection from" not in sshd.log.read_text()


def test_a_lost_connection_is_an_error_and_the_next_call_connects_again(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    threading.Timer(0.5, sshd.drop_connections).start()
    started = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        transport.run(["sleep", "61"], timeout_s=60)
    assert caught.value.code == "E-SSH-040"
    assert time.monotonic() - started < 30
    left = [Path(f"/proc/{p}/cmdline").read_bytes() for p in sshd.commands()]
    assert any(b"sleep\x0061" in c for c in left), "a lost connection stops nothing"
    assert transport.run(["true"], timeout_s=60).ok
    assert connections(sshd) == 2


def test_a_killed_shell_is_not_taken_for_a_lost_connection(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    with pytest.raises(RemoteError) as caught:
        transport.run(["sh", "-c", "kill -9 $PPID"], timeout_s=60)
    assert caught.value.code == "E-SSH-046"
    assert transport.run(["true"], timeout_s=60).ok
    assert connections(sshd) == 1


def test_threads_share_one_connection(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    outs: dict[int, str] = {}

    def ask(i: int) -> None:
        outs[i] = transport.run(["echo", str(i)], timeout_s=60).stdout

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert outs == {i: f"{i}\n" for i in range(8)}
    assert connections(sshd) == 1


def test_a_process_is_written_and_read_in_any_amounts(sshd: Sshd, connect: Connect) -> None:
    process = connect(sshd).start(["cat"], timeout_s=60)
    data = os.urandom(300_000)
    process.write(data, timeout_s=60)
    got = b""
    while len(got) < len(data):
        got += process.read(timeout_s=60)
    assert got == data
    with pytest.raises(UnreachableError) as caught:
        process.read(timeout_s=0.2)
    assert caught.value.code == "E-SSH-041"
    process.close()
    process.close()


def test_a_process_that_takes_nothing_is_a_timeout_and_one_that_ended_an_error(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd)
    process = transport.start(["sleep", "60"], timeout_s=60)
    with pytest.raises(UnreachableError) as caught:
        process.write(b"x" * 8_000_000, timeout_s=0.5)
    assert caught.value.code == "E-SSH-041"
    process.close()
    process = transport.start(["sh", "-c", "echo out; echo why >&2; exit 3"], timeout_s=60)
    assert process.read(timeout_s=60) == b"out\n"
    assert process.read(timeout_s=60) == b""
    assert process.stderr() == "why\n"
    with pytest.raises(UnreachableError) as caught:
        for _ in range(500):
            process.write(b"x", timeout_s=1)
            time.sleep(0.01)
    assert caught.value.code == "E-SSH-046"


def test_errors_in_plenty_do_not_stall_a_process(sshd: Sshd, connect: Connect) -> None:
    """More than the window of the channel: 8 MB on standard error, then the answer."""
    process = connect(sshd).start(["sh", "-c", "head -c 8000000 /dev/zero >&2; echo last >&2; echo out"], timeout_s=60)
    assert process.read(timeout_s=60) == b"out\n"
    assert process.read(timeout_s=60) == b""
    assert process.stderr().endswith("last\n") and len(process.stderr()) <= 64 << 10


def test_closing_a_process_gives_its_input_an_end(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    proof = tmp_path / "ended"
    process = connect(sshd).start(["sh", "-c", 'cat >/dev/null; echo x >"$1"', "sh", str(proof)], timeout_s=60)
    process.close()
    deadline = time.monotonic() + 60
    while not proof.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_far_pod_works_where_one_session_is_all_there_is(
    make_sshd: MakeSshd, connect: Connect, tmp_path: Path
) -> None:
    sshd = make_sshd(max_sessions=1, home=tmp_path / "far")
    (tmp_path / "far").mkdir()
    transport = connect(sshd)
    pod = FarPod("box", transport)
    assert pod.home.path == tmp_path / "far/.orch"
    with pytest.raises(RemoteError) as caught:
        transport.run(["true"], timeout_s=60)
    assert caught.value.code == "E-SSH-042" and "MaxSessions" in str(caught.value.expected)
    pod._drop()
    for _ in range(5):
        assert transport.run(["true"], timeout_s=60).ok, "each gives its session back"
    assert connections(sshd) == 1


def test_a_far_pod_finds_its_way_back_after_a_loss(make_sshd: MakeSshd, connect: Connect, tmp_path: Path) -> None:
    home = tmp_path / "far"
    home.mkdir()
    sshd = make_sshd(home=home, banner="Authorised use only\n")
    pod = FarPod("box", connect(sshd))
    assert pod.home.path == home / ".orch"
    sshd.drop_connections()
    with pytest.raises(UnreachableError):
        pod.call("home.nothing")
    with pytest.raises(RemoteError):
        pod.call("home.nothing")  # answered by the pod: no such operation
    assert connections(sshd) == 2


def test_put_replaces_a_file_whole_and_private(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    transport = connect(sshd)
    path = tmp_path / "new" / "-rf 'x'\n" / "file"
    for data in (os.urandom(3_000_000), b"", b"last\n"):
        transport.put(data, PurePosixPath(path), timeout_s=60)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    transport.put(b"#!/bin/sh\n", PurePosixPath(path), timeout_s=10, mode=0o755)
    assert path.stat().st_mode & 0o777 == 0o755
    assert os.listdir(path.parent) == ["file"]


def test_put_says_why_not_and_leaves_nothing(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    transport = connect(sshd)
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("old")
    for path, word in ((tmp_path / "dir", "directory"), (tmp_path / "file" / "below", "File exists")):
        with pytest.raises(RemoteError) as caught:
            transport.put(b"x", PurePosixPath(path), timeout_s=60)
        assert caught.value.code == "E-SSH-049" and caught.value.where == str(path)
        assert word in str(caught.value.value) or "Not a directory" in str(caught.value.value)
    assert sorted(os.listdir(tmp_path)) == ["dir", "file", "home", "pod"]
    assert os.listdir(tmp_path / "dir") == []


def test_a_connection_lost_within_put_leaves_the_old_file(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    transport = connect(sshd)
    path = tmp_path / "place" / "file"
    transport.put(b"old", PurePosixPath(path), timeout_s=60)
    threading.Timer(0.05, sshd.drop_connections).start()
    with pytest.raises(UnreachableError):
        for _ in range(200):
            transport.put(b"n" * 4_000_000, PurePosixPath(path), timeout_s=60)
            path.write_bytes(b"old")
    deadline = time.monotonic() + 60
    while os.listdir(path.parent) != ["file"]:
        assert time.monotonic() < deadline, os.listdir(path.parent)
        time.sleep(0.02)
    assert path.read_bytes() in (b"old", b"n" * 4_000_000)


@pytest.mark.lab
def test_put_on_a_full_disk_says_so_and_keeps_the_old_file(
    make_sshd: MakeSshd, connect: Connect, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr!r}")
    try:
        transport = connect(make_sshd())
        transport.put(b"old", PurePosixPath(disk / "file"), timeout_s=60)
        with pytest.raises(RemoteError) as caught:
            transport.put(b"n" * 1_000_000, PurePosixPath(disk / "file"), timeout_s=60)
        assert "No space left" in str(caught.value.value)
        assert (disk / "file").read_bytes() == b"old" and os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("buffer", ["in_buffer", "in_stderr_buffer"])
def test_a_lock_that_ctrl_c_left_held_inside_paramiko_holds_nobody_up(
    sshd: Sshd, connect: Connect, buffer: str
) -> None:
    """KeyboardInterrupt between `acquire` and `try` in its read: for ever held by the thread that has to clean up."""
    transport = connect(sshd)
    with pytest.raises(KeyboardInterrupt), transport._session(10) as channel:
        getattr(channel, buffer)._lock.acquire()
        began = time.monotonic()
        raise KeyboardInterrupt
    transport.close()
    assert time.monotonic() - began < 30
    assert transport.run(["true"], timeout_s=60).ok  # a new connection
