"""Device leases between real shims, out of memory in a real cgroup, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pod.shimlab import Lab, until
from workloads.contract.errors import ConflictError, LocalError
from workloads.contract.process import ProcId
from workloads.shim.lease import lease, release
from workloads.shim.oom import oom_kills

GPU = "GPU-6b1f0e6a-95b1-4c3e-a1b2-0123456789ab"
OTHER = "GPU-00000000-aaaa-bbbb-cccc-0123456789ab"
CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def test_a_device_is_leased_once_and_the_holder_is_named(lab: Lab) -> None:
    lab.sh("echo up; sleep 30", devices=[GPU])
    lab.says(b"up")
    lab.sh("echo never", rank=1, devices=[OTHER, GPU])
    row = lab.ended(1)
    assert row["cause"] == "lease-busy" and GPU in row["error"] and lab.run.run_id in row["error"]
    assert lab.log(1) == b""
    lab.sh("echo fine", rank=2, devices=[OTHER])  # the part that was got is given back
    assert lab.ended(2)["exit_code"] == 0
    assert lab.leases.stat().st_mode & 0o7777 == 0o1777
    assert (lab.leases / f"{GPU}.lock").stat().st_mode & 0o777 == 0o666


def test_the_lease_is_free_when_the_record_says_ended(lab: Lab) -> None:
    for rank in range(3):
        lab.sh("exit 0", rank=rank, devices=[GPU])
        assert lab.ended(rank)["exit_code"] == 0


def test_the_lease_lasts_while_a_grandchild_lives(lab: Lab) -> None:
    shim = lab.sh("env -i setsid sleep 60 & echo $!; exec sleep 60", devices=[GPU])
    lab.says(b"\n")
    rank = lab.rank()
    grandchild = until(lambda: ProcId.of(int(lab.log())))
    os.kill(shim.pid, signal.SIGKILL)
    shim.wait(timeout=120)
    until(lambda: not rank.alive())
    lab.sh("echo never", rank=1, devices=[GPU])
    assert lab.ended(1)["cause"] == "lease-busy" and grandchild.alive()
    grandchild.signal(signal.SIGKILL)
    until(lambda: not grandchild.alive())
    lab.sh("echo now", rank=2, devices=[GPU])
    assert lab.ended(2)["exit_code"] == 0


def test_nothing_in_a_shared_directory_is_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    release(lease(folder, [GPU], {}))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / f"{OTHER}.lock").symlink_to(victim)
    with pytest.raises(LocalError):
        lease(folder, [GPU, OTHER], {}, patience_s=0)
    release(lease(folder, [GPU], {}, patience_s=0))  # was given back
    (folder / f"{OTHER}.lock").unlink()
    os.mkfifo(folder / f"{OTHER}.lock")
    with pytest.raises(LocalError):
        lease(folder, [OTHER], {}, patience_s=0)
    for name in ("../escape", "", ".hidden", "a/b", "x" * 200):
        with pytest.raises(ConflictError):
            lease(folder, [name], {}, patience_s=0)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "foreign lock", "no device"])
def test_a_lease_that_can_never_be_had_is_no_device_in_use(lab: Lab, kind: str) -> None:
    """Else the run would go back to its queue and try again for ever."""
    device, words = GPU, str(lab.leases)
    if kind == "file":
        lab.leases.write_text("")
    elif kind == "foreign lock":
        (lab.leases / f"{GPU}.lock").mkdir(parents=True)
    else:
        device, words = "not a device", "not the name of a device"
    lab.sh("echo never", devices=[device])
    row = lab.ended()
    assert row["cause"] == "spawn-failed" and words in row["error"], row
    assert "pid" not in row and lab.log() == b""


def test_a_lock_file_that_was_removed_does_not_give_the_device_twice(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    held = lease(folder, [GPU], {"run": "first"})
    (folder / f"{GPU}.lock").unlink()
    second = lease(folder, [GPU], {"run": "second"}, patience_s=0)
    (folder / f"{GPU}.lock").write_text("\x1b[31mnot json")
    with pytest.raises(ConflictError) as caught:
        lease(folder, [GPU], {}, patience_s=0)
    assert "\x1b" not in str(caught.value)
    release(held)
    release(second)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup (v1) of 64 MiB."""
    group = CGROUP / f"orch-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(64 << 20))
    except OSError as e:
        pytest.skip(f"no cgroup v1 memory controller can be used here: {e}")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


@pytest.mark.lab
def test_out_of_memory_is_told(lab: Lab, small_group: Path) -> None:
    order = lab.order([sys.executable, "-I", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
    enter = ("sh", "-c", f'echo $$ > {small_group}/cgroup.procs; exec "$@"', "sh")
    lab.start(order, prefix=enter).wait(timeout=120)
    row = lab.ended()
    assert (row["signal"], row["cause"], row["oom"]) == (signal.SIGKILL, "signalled", True)
    assert row["max_rss_mib"] > 20


def test_a_kill_by_somebody_is_no_lack_of_memory(lab: Lab) -> None:
    lab.sh("kill -KILL $$")
    row = lab.ended()
    assert row["signal"] == signal.SIGKILL and row["oom"] is False


def test_counters_of_both_cgroup_versions_are_found(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "mount"
    (mount / "inner").mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text("0::/docker/abc/inner\n")
    (proc / "mountinfo").write_text(f"30 23 0:26 /docker/abc {mount} rw - cgroup2 cgroup2 rw,nsdelegate\n")
    assert oom_kills(proc) is None
    (mount / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(proc) == 2
    (mount / "inner" / "memory.events").write_text("oom_kill 1\n")
    assert oom_kills(proc) == 1
    assert oom_kills(tmp_path / "nothing") is None


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_delays_the_record_and_kills_no_shim(lab: Lab, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr!r}")
    full = Lab.make(small)
    try:
        shim = full.sh("echo up; sleep 1; exit 4")
        full.says(b"up")
        filler = small / "filler"
        with filler.open("wb", buffering=0) as f:
            try:
                while f.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        time.sleep(2.0)
        assert shim.poll() is None and "ended" not in full.record()
        filler.unlink()
        row = full.ended()
        assert row["exit_code"] == 4 and shim.wait(timeout=120) == 0
    finally:
        full.close()
        subprocess.run(["umount", "-l", str(small)], check=True)
