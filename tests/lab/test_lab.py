"""The lab itself: pods are machines of their own, faults are real and end, nothing stays."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.disk import ROOT, PodOptions
from tests.lab.fixtures import MakeLab
from tests.lab.lab import MARK, PREFIX, Lab, sweep
from tests.lab.pod import LabPod
from workloads.contract.process import ProcId

pytestmark = pytest.mark.lab
OPEN_SSH = ("ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")


def ssh(lab: Lab, pod: LabPod, *command: str, wait_s: int = 5) -> subprocess.CompletedProcess[str]:
    """OpenSSH from the laptop, the pod's key pinned."""
    known = lab.place / f"known_{pod.name}"
    known.write_text(f"[{pod.address}]:{pod.options.port} {pod.host_key}\n{pod.address} {pod.host_key}\n")
    argv = [
        "ssh", "-F", "none", "-i", str(lab.identity), "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={known}",
        "-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={wait_s}", "-o", "BatchMode=yes", "-p",
        str(pod.options.port), f"{pod.options.user}@{pod.address}", *command,
    ]  # fmt: skip
    process = lab.popen(argv)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def connects(lab: Lab, pod: LabPod, timeout_s: float = 1.0) -> bool:
    try:
        with lab.inside():
            socket.create_connection((pod.address, pod.options.port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def said(pod: LabPod, *argv: str) -> str:
    done = pod.exec(argv)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_pod_has_a_name_processes_a_boot_and_a_disk_of_its_own(lab: Lab) -> None:
    a, b = lab["pod-a"], lab["pod-b"]
    for pod in (a, b):
        done = ssh(lab, pod, "hostname; cat /proc/sys/kernel/random/boot_id; echo $$; ls -A /workspace /tmp /dev/shm")
        assert done.returncode == 0, done.stderr
        name, boot, pid, *rest = done.stdout.split()
        assert (name, boot) == (pod.name, pod.boot_id) and int(pid) < 5000
        here = Path(sys.prefix).parts  # the interpreter is bound in, wherever it lies
        assert [x for x in rest if x not in here] == ["/dev/shm:", "/tmp:", "/workspace:"]
    assert len({a.boot_id, b.boot_id, Path("/proc/sys/kernel/random/boot_id").read_text().strip()}) == 3
    assert a.processes()[0].pid == 1 and not any("pytest" in " ".join(p.argv) for p in a.processes())
    said(a, "sh", "-c", "echo kept >/workspace/mine; echo x >/usr/bin/only-here")
    assert not Path("/usr/bin/only-here").exists() and not b.path("/workspace/mine").exists()
    said(a, "rm", "/workspace/mine", "/usr/bin/only-here")


def test_a_pod_has_neither_the_checkout_nor_the_hosts_home_and_can_run_the_venv(lab: Lab) -> None:
    pod = lab["pod-a"]
    checkout = pod.path(ROOT)
    assert not checkout.exists() or {p.name for p in checkout.iterdir()} <= {Path(sys.prefix).name}
    assert not {".ssh", ".bashrc", ".gitconfig"} & {p.name for p in pod.path("/root").iterdir()}
    python = str(Path(sys.prefix, "bin", "python"))
    assert said(pod, python, "-c", "import numpy, sys; print(sys.prefix)") == sys.prefix
    assert pod.exec(["touch", f"{sys.prefix}/x"]).returncode != 0


def test_a_cut_cuts_and_mends_and_an_open_connection_goes_on(lab: Lab) -> None:
    pod = lab["pod-a"]
    ticks = lab.popen([*OPEN_SSH, "-i", str(lab.identity), pod.target, "while sleep 0.1; do date; done"])
    assert ticks.stdout is not None and ticks.stdout.readline()
    with pod.cut():
        assert not connects(lab, pod) and connects(lab, lab["pod-b"])
        assert pod.exec(["true"]).returncode == 0
    assert connects(lab, pod, 5)
    assert all(ticks.stdout.readline() for _ in range(30))  # more than came before and during the cut
    ticks.kill()
    ticks.communicate()
    with pod.silent():
        assert not connects(lab, pod)
    assert connects(lab, pod, 5)


def test_reset_slow_and_lossy_links_are_that_and_end(lab: Lab) -> None:
    pod = lab["pod-a"]
    with pod.reset(), lab.inside(), pytest.raises(ConnectionRefusedError):
        socket.create_connection((pod.address, pod.options.port), timeout=2)
    size = 256 << 10

    def send_s() -> float:
        started = time.monotonic()
        done = ssh(lab, pod, f"head -c {size} /dev/zero")
        assert done.returncode == 0 and len(done.stdout) == size, done.stderr
        return time.monotonic() - started

    plain = send_s()
    with pod.slow("2mbit"):
        assert send_s() > plain + 0.5
    with pod.lossy(0.3):
        with lab.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(1000):
                sender.sendto(b"x", (pod.address, 9))
        rules = pod.net.run("nft", "list", "ruleset")
        lost = [int(n) for n in re.findall(r"< 3000 counter packets (\d+)", rules)]
        assert len(lost) == 2 and 200 < lost[0] < 400, rules  # of what came in; what goes out has a rule of its own
    assert pod.net.run("nft", "list", "ruleset") == ""
    assert send_s() < plain + 1.0


@pytest.mark.long
def test_a_far_pod_takes_its_time_each_way(lab: Lab) -> None:
    pod = lab["pod-b"]

    def connect_s() -> float:
        started = time.monotonic()
        assert connects(lab, pod, 5)
        return time.monotonic() - started

    assert connect_s() < 0.1
    with pod.far(0.1, loss=0.01):
        connect_s()  # the first one also asks for the address
        assert 0.2 <= connect_s() < 2
        assert ssh(lab, pod, "hostname", wait_s=20).stdout == "pod-b\n"
    assert connects(lab, pod, 5) and connect_s() < 0.1


def test_a_power_cut_kills_all_and_a_boot_has_the_same_disk_and_another_boot_id(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    said(pod, "sh", "-c", "echo kept >~/kept; echo lost >/tmp/lost; setsid sleep 1000 >/dev/null 2>&1 &")
    session = lab.popen([*OPEN_SSH, "-i", str(lab.identity), pod.target, "sleep 1000"])
    wait_for(lambda: sum(p.argv[:1] == ("sleep",) for p in pod.processes()) == 2)
    inside = pod.boot_id
    there = [p for p in os.listdir("/proc") if p.isdigit() and lab.name in environ(p) and p != str(session.pid)]
    pod.power_cut()
    assert session.wait(timeout=120) == 255
    holders = {lab.switch.pid, lab.laptop.pid, pod.net.pid}
    left = {int(p) for p in there if Path(f"/proc/{p}").exists()}
    assert holders <= left and len(left) == len(holders) + 1  # and the one that keeps the disk
    pod.boot()
    assert pod.boot_id != inside and pod.path("/root/kept").read_text() == "kept\n"
    assert not pod.path("/tmp/lost").exists()
    assert said(pod, "cat", "/proc/sys/kernel/random/boot_id") == pod.boot_id
    assert ssh(lab, pod, "hostname").stdout == "pod-a\n"
    same = pod.boot_id
    pod.reboot(new_boot_id=False)
    assert said(pod, "cat", "/proc/sys/kernel/random/boot_id") == same


def environ(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def wait_for(what: object, seconds: float = 5.0) -> None:
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


ODD = {
    "pod-a": PodOptions(
        shell="/bin/sh", home="/home/with space", hide=("tar", "gzip"), sftp=False, sshd={"MaxSessions": "1"},
        banner="Welcome.\n", tmp_noexec=True, port=2222, python="none", home_readonly=True,
    ),
    "pod-b": PodOptions(
        user="ann", bashrc="echo noise\n", python="old", disk_mib=16, memory_mib=100, host_key_type="ecdsa",
        programs={"nvidia-smi": "#!/bin/sh\necho 'No devices were found'\n"},
    ),
}  # fmt: skip


def test_pods_can_be_odd(make_lab: MakeLab) -> None:
    lab = make_lab(2, ODD)
    a, b = lab["pod-a"], lab["pod-b"]
    looked = "pwd; for p in tar python3 python python3.11 dd; do command -v $p || echo no; done; touch ~/x || echo ro"
    done = ssh(lab, a, looked)
    assert done.stdout.split("\n")[:-1] == ["/home/with space", *["no"] * 4, "/usr/bin/dd", "ro"]
    assert done.stderr.startswith("Welcome.\n")
    assert ssh(lab, a, "cp /bin/true /tmp/t && /tmp/t").returncode == 126
    assert ssh(lab, a, "cp /bin/true /workspace/t && /workspace/t").returncode == 0
    done = ssh(lab, b, "id -un; python3 -V; python3 -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))'; "
                       "echo $?; nvidia-smi; head -c 32000000 /dev/zero >~/big || echo full")  # fmt: skip
    assert done.stdout.splitlines() == ["noise", "ann", "Python 3.9.18", "1", "No devices were found", "full"]
    python = str(Path(sys.prefix, "bin", "python"))
    done = ssh(lab, b, f"{python} -c 'bytearray(200 << 20)'; echo $?")
    assert done.stdout.splitlines()[-1] == "137" and b.oom_kills == 1
    assert said(b, "sh", "-c", "cat /sys/fs/cgroup/memory*/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
                               "; true") == str(100 << 20)  # fmt: skip


def test_a_closed_lab_leaves_nothing(make_lab: MakeLab) -> None:
    mounts = Path("/proc/mounts").read_text()
    with Lab(2, {"pod-a": PodOptions(memory_mib=200)}) as lab:
        lab.popen(["setsid", "sleep", "1000"])
        name = lab.name
        assert mounts == Path("/proc/mounts").read_text()
        assert owned_by(name)
    assert not owned_by(name)
    assert not lab.place.exists() and not list(Path("/sys/fs/cgroup").glob(f"**/{name}*"))
    assert mounts == Path("/proc/mounts").read_text()


def owned_by(name: str) -> list[str]:
    """Processes of a lab that are not zombies."""
    found = [p for p in os.listdir("/proc") if p.isdigit() and f"{MARK}={name}" in environ(p)]
    return [p for p in found if ProcId.of(int(p)) is not None]


def test_a_killed_test_process_leaves_nothing_that_runs(tmp_path: Path, make_lab: MakeLab) -> None:
    script = (
        "import sys, time; from tests.lab.lab import Lab\n"
        "with Lab(1) as lab:\n"
        "    left = lab.popen(['sleep', '1000'], start_new_session=True)\n"
        "    print(lab.name, flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name.startswith(PREFIX) and len(owned_by(name)) > 4
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    wait_for(lambda: len(owned_by(name)) == 1)  # what it ran on the laptop is in no namespace of ours to end
    sweep()
    wait_for(lambda: not owned_by(name))
    assert not list(Path("/tmp").glob(f"{name}*"))
