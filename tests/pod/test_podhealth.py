"""A pod's facts from real things: small and read-only disks, limits of memory, cards, the kernel's log."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.health.facts import GpuFacts, PodFacts
from pods.remote import podhealth
from pods.remote.cgroup import levels, tightest
from pods.remote.gpueye import GpuEye
from pods.remote.kernellog import KernelLog, uuids_by_bus
from pods.remote.podhealth import PodProbe, Xids, writable
from tests.lab.limits import V1, MemoryLimit
from tests.lab.need import LabUnavailable
from tests.pod.fakenvml import A, B, gpu, install
from tests.pod.shimlab import ROOT, Lab
from workloads.contract.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    for folder in (made.path, *made.skeleton()):
        folder.mkdir()
    return made


def inside(script: str, *args: str) -> dict[str, Any]:
    """What a probe says in a mount namespace that `script` has set up; "$1" is the run directory."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounts need root on Linux")
    code = (
        "import json, sys; from pathlib import Path; from pods.remote.podhealth import PodProbe;"
        "from workloads.contract.rundir import RunDir;"
        "print(json.dumps(PodProbe(RunDir(Path(sys.argv[1])), ()).look(0.0)))"
    )
    shell = f'{script} && exec "$0" -c "$CODE" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, sys.executable, *args],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CODE": code},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def test_a_look_is_whole_cheap_and_leaves_nothing_behind(run: RunDir) -> None:
    probe = PodProbe(run, ())
    before = sorted(run.path.rglob("*"))
    facts = probe.look(0.0)
    known = {f for f in PodFacts.__dataclass_fields__} - {"pod", "age_s", "guard"}
    assert facts.keys() == known and all(v is not None for v in facts.values())
    assert PodFacts("a", **{k: v for k, v in facts.items() if k != "gpus"}).writable is True
    assert 0 < facts["disk_free_bytes"] <= facts["disk_total_bytes"] == shutil.disk_usage(run.path).total
    assert 0 < facts["mem_used_bytes"] < facts["mem_limit_bytes"]
    assert abs(facts["wall_minus_mono_s"] - probe.look(5.0)["wall_minus_mono_s"]) < 0.05
    assert sorted(run.path.rglob("*")) == before
    began = time.process_time()
    for _ in range(20):
        probe.look(0.0)
    assert (time.process_time() - began) / 20 < 0.05  # of every 3 s; 0.001 on an idle machine


@pytest.mark.lab
def test_a_full_disk(run: RunDir) -> None:
    script = 'mount -t tmpfs -o size=1m t "$1" && head -c 2m /dev/zero >"$1/big" 2>/dev/null || true'
    facts = inside(script, str(run.path))
    assert facts["writable"] is False and facts["disk_free_bytes"] == 0 and facts["disk_total_bytes"] == 1 << 20


@pytest.mark.lab
def test_a_disk_that_is_not_full_but_has_no_file_left(run: RunDir) -> None:
    script = 'mount -t tmpfs -o size=4m,nr_inodes=3 t "$1" && touch "$1/a" "$1/b" "$1/c" 2>/dev/null || true'
    facts = inside(script, str(run.path))
    assert facts["writable"] is False and facts["disk_free_bytes"] > 0


@pytest.mark.lab
def test_a_disk_that_became_read_only(run: RunDir) -> None:
    facts = inside('mount -t tmpfs t "$1" && mount -o remount,ro "$1"', str(run.path))
    assert facts["writable"] is False and facts["disk_free_bytes"] > 0


def test_a_run_directory_that_is_gone(run: RunDir) -> None:
    probe = PodProbe(run, ())
    shutil.rmtree(run.path)
    facts = probe.look(0.0)
    assert facts["writable"] is False and "disk_free_bytes" not in facts and facts["mem_limit_bytes"] > 0


def test_a_disk_that_hangs_hides_nothing_else_and_keeps_one_thread(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = threading.Event()
    monkeypatch.setattr(podhealth, "LOOK_S", 0.2)
    monkeypatch.setattr(podhealth, "writable", lambda _: mended.wait(60))
    probe = PodProbe(run, ())
    before = threading.active_count()
    for _ in range(3):
        facts = probe.look(0.0)
        assert "writable" not in facts and facts["disk_free_bytes"] > 0 and facts["mem_limit_bytes"] > 0
    assert threading.active_count() == before + 1
    mended.set()
    monkeypatch.setattr(podhealth, "LOOK_S", 30.0)
    assert probe.look(0.0).get("writable") in (True, None) and probe.look(0.0)["writable"] is True


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real = os.open

    def refuses(path: Any, flags: int, *args: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(code, "no")
        return real(path, flags, *args)

    monkeypatch.setattr(os, "open", refuses)
    (tmp_path / podhealth.PROBE_NAME).write_text("of a look that was killed")
    assert writable(tmp_path) is True and list(tmp_path.iterdir()) == []


# cards


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, KernelLog]]:
    """One record a read, EAGAIN when there is none, as /dev/kmsg."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    yield ours, KernelLog(theirs.detach())
    ours.close()


def xid(bus: str, code: int, mono_s: float | None = None) -> bytes:
    stamp = int((time.monotonic() if mono_s is None else mono_s) * 1e6)
    return (
        f"4,1093,{stamp},-;NVRM: Xid (PCI:{bus}): {code}, pid=99, GPU has fallen off the bus.\n SUBSYSTEM=x\n".encode()
    )


def test_cards_as_the_rules_want_them(run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus = install(monkeypatch, tmp_path)
    gpus.say(gpu(A, 4096, ecc=3), gpu(B), f"lost {B}")
    probe = PodProbe(run, (A, B, "GPU-gone"), GpuEye())
    rows = [GpuFacts(**row) for row in probe.look(0.0)["gpus"]]
    assert rows == [
        GpuFacts(A, True, 4096.0, 144_384.0, 3), GpuFacts(B, False), GpuFacts("GPU-gone", False),
    ]  # fmt: skip
    gpus.add(f"xid {A} 48")
    assert probe.look(0.0)["gpus"][0]["xids"] == (48,)
    assert PodProbe(run, ()).eye is PodProbe(run, (B,)).eye  # an attempt has a new probe, a process one child
    child = probe.eye._child
    del probe
    gc.collect()
    assert child is not None and child.wait(timeout=120) == 0


def test_cards_that_cannot_be_asked_are_unknown_not_missing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(podhealth, "LOOK_S", 0.5)
    gpus = install(monkeypatch, tmp_path)
    gpus.say(gpu(A), "hang nvmlInit_v2")
    facts = PodProbe(run, (A,), GpuEye()).look(0.0)
    assert facts["gpus"] == [{"uuid": A, "present": None}] and facts["writable"] is True


def test_xids_of_the_kernels_log_belong_to_a_card_and_an_attempt(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: tuple[socket.socket, KernelLog]
) -> None:
    gpus = install(monkeypatch, tmp_path)
    gpus.say(gpu(A, bus="0000:18:00"), gpu(B, bus="0001:ca:00"))
    eye, (wire, log) = GpuEye(), kernel
    run.attempt_dir(1).mkdir()
    run.rank_order(1, 0).write_text("{}")
    xids, states = Xids(run, log), eye.look([A, B]).states
    now = time.monotonic()
    for record in (
        xid("0000:18:00", 13, now - 3600), xid("0000:18:00", 79), xid("00000001:CA:00.0", 31), xid("0000:99:00", 94),
        b"6,1,2,-;NVRM: nothing", b"garbage", b"4,2,x,-;NVRM: Xid (PCI:0000:18:00): 62",
    ):  # fmt: skip
        wire.send(record)
    assert xids.look(states) == {A: (79,), B: (31,)}
    gpus.say(gpu(A), f"lost {A}", gpu(B, bus="0001:ca:00"))  # it has no place on the bus any more
    wire.send(xid("0000:18:00", 79))
    wire.send(xid("0000:18:00", 154))
    assert xids.look(eye.look([A, B]).states) == {A: (79, 154), B: (31,)}
    run.attempt_dir(2).mkdir()
    run.rank_order(2, 0).write_text("{}")
    assert set(xids.look(eye.look([A, B]).states).values()) == {()}
    wire.send(xid("0001:ca:00", 95))
    assert xids.look(states)[B] == (95,)


def test_a_step_of_the_clock_gives_an_attempt_no_older_xids(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: tuple[socket.socket, KernelLog]
) -> None:
    """As seen by a supervisor that is started again behind the step."""
    monkeypatch.setattr(podhealth, "CLOCK_SLACK_S", 0.1)
    install(monkeypatch, tmp_path).say(gpu(A, bus="0000:18:00"))
    lab, (wire, log) = Lab.make(tmp_path), kernel
    try:
        before = time.monotonic() - 300
        lab.sh("sleep 600")
        lab.rank()
        since = time.monotonic()
        time.sleep(0.3)
        for path in lab.run.attempt_dir(1).iterdir():  # an hour ago, says a clock that was set forward by one
            os.utime(path, (time.time() - 3600,) * 2)
        wire.send(xid("0000:18:00", 48, before))
        wire.send(xid("0000:18:00", 79, since))
        assert Xids(lab.run, log).look(GpuEye().look([A]).states) == {A: (79,)}
    finally:
        lab.close()


def test_the_kernels_own_log_can_be_read_or_tells_nothing() -> None:
    for log in (KernelLog.open(), KernelLog(None)):
        assert isinstance(log.new(), list) and log.new() == []


def test_places_on_the_bus_without_nvml(tmp_path: Path) -> None:
    for name, uuid in (("0000:18:00.0", A), ("0000:19:00.0", "GPU-????????-????"), ("noise", B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "information").write_text(
            f"Model: \t\t NVIDIA H200\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n"
        )
    assert uuids_by_bus(tmp_path) == {"0000:18:00": A} and uuids_by_bus(tmp_path / "none") == {}


# memory


@pytest.fixture
def limit() -> Iterator[MemoryLimit]:
    try:
        made = MemoryLimit(f"orch-health-{os.getpid()}", 300)
    except LabUnavailable as e:
        pytest.skip(str(e))
    yield made
    made.close()


def held(limit: MemoryLimit, code: str) -> subprocess.Popen[bytes]:
    script = f"{code}\nprint('ready', flush=True)\nimport time\ntime.sleep(600)"
    process = subprocess.Popen(limit.around([sys.executable, "-c", script]), stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.lab
def test_page_cache_is_not_used_memory_and_the_tightest_limit_counts(limit: MemoryLimit, tmp_path: Path) -> None:
    """150 MiB of a checkpoint just written are in the cache; 60 MiB are really held. A nested limit is tighter."""
    code = (
        f"f = open({str(tmp_path / 'big')!r}, 'wb')\nfor _ in range(150): f.write(bytes(1 << 20))\n"
        "f.flush()\nheld = bytearray(b'x' * (60 << 20))"
    )
    idle = tmp_path / "meminfo"  # others may fill this machine
    idle.write_text("MemTotal: 67108864 kB\nMemAvailable: 66000000 kB\n")
    process = held(limit, code)
    inner = limit.path / "inner"
    try:
        level = tightest(Path(f"/proc/{process.pid}"), idle)
        assert level is not None and level.where == str(limit.path) and level.limit_bytes == 300 << 20
        assert 60 << 20 <= level.used_bytes < 120 << 20
        if V1.is_dir():
            usage = int((limit.path / "memory.usage_in_bytes").read_text())
            assert usage > 200 << 20  # the kernel's own figure has the cache in it
            inner.mkdir()
            (inner / "cgroup.procs").write_text(str(process.pid))
            (inner / "memory.limit_in_bytes").write_text(str(4 << 30))
            nested = tightest(Path(f"/proc/{process.pid}"), idle)
            assert nested is not None and nested.where == str(limit.path)  # an outer limit holds for what is inside
    finally:
        process.kill()
        process.wait(timeout=120)
        if inner.is_dir():
            inner.rmdir()


def proc(folder: Path, cgroup: str, mounts: str) -> Path:
    made = folder / "proc"
    made.mkdir()
    (made / "cgroup").write_text(cgroup)
    (made / "mountinfo").write_text(mounts)
    return made


def group(folder: Path, limit: str, current: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(current))
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("cgroup", "root"),
    [
        ("0::/kubepods/pod1/main\n", "/"),  # the machine's own view
        ("0::/kubepods/pod1/main\n", "/kubepods/pod1/main"),  # a container with the machine's names
        ("0::/\n", "/"),  # a container with a namespace of its own
        ("0::/../../elsewhere\n", "/"),
    ],
)
def test_cgroup_v2_as_a_machine_and_as_containers_see_it(tmp_path: Path, cgroup: str, root: str) -> None:
    mount = tmp_path / "cgroup"
    mine = mount / "kubepods/pod1/main" if "kubepods" in cgroup and root == "/" else mount
    if mine != mount:
        group(mine.parent, "2000", 1900, "inactive_file 100\nactive_file 200\nanon 1600\n")
    group(mine, "4000", 1500, "inactive_file 300\nactive_file 200\n")
    folder = proc(tmp_path, cgroup, f"30 24 0:26 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
    got = [(Path(level.where), level.used_bytes, level.limit_bytes) for level in levels(folder, tmp_path / "none")]
    assert got[0] == (mine, 1000, 4000)
    assert got[1:] == ([(mine.parent, 1600, 2000)] if mine != mount else [])


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    mount, meminfo = tmp_path / "cgroup", tmp_path / "meminfo"
    group(mount / "a", "max", 1500, "anon 1\n")
    folder = proc(tmp_path, "0::/a\n", f"30 24 0:26 / {mount} rw - cgroup2 cgroup2 rw\nnoise\n")
    meminfo.write_text("MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    250 kB\nHugePages_Total:       0\n")
    level = tightest(folder, meminfo)
    assert level is not None and (level.where, level.fraction) == ("the machine", 0.75)
    meminfo.write_text("MemTotal: 1000 kB\n")
    assert tightest(folder, meminfo) is None is tightest(tmp_path / "gone", tmp_path / "gone")
