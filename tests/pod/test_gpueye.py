"""Asking for GPUs by real ctypes calls: figures, a lost card, a driver that hangs or crashes, nvidia-smi instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.bundle import remote_bundle
from pods.remote import gpueye, gpusmi
from pods.remote.gpueye import GpuEye
from pods.remote.gpustate import GpuProcess
from tests.pod.fakenvml import A, B, FakeGpus, gpu, install
from tests.pod.shimlab import until
from workloads.contract.process import read_stat


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpus:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def eye() -> Iterator[GpuEye]:
    made = GpuEye()
    yield made
    made.close()


def child(eye: GpuEye) -> int:
    assert eye._child is not None
    return eye._child.pid


def test_what_a_card_tells(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 117_760, ecc=2), f"proc {A} 4242 117000", f"proc {A} 4243 -1", gpu(B, bus="0001:ca:00", ecc=-1))
    seen = eye.look([A, B])
    assert seen.error is None
    a, b = seen.states[A], seen.states[B]
    assert (a.present, a.used_mib, a.total_mib, a.ecc_uncorrected, a.bus) == (True, 117_760, 144_384, 2, "0000:18:00")
    assert a.compute == (GpuProcess(4242, 117_000), GpuProcess(4243, None)) and a.graphics == ()
    assert (b.present, b.used_mib, b.ecc_uncorrected, b.bus, b.compute) == (True, 4, None, "0001:ca:00", ())
    assert set(eye.look(None).states) == {A, B}


def test_many_processes_and_an_older_driver(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 100), *(f"proc {A} {pid} 1" for pid in range(1000, 1040)), "fail nvmlDeviceGetMemoryInfo_v2 3")
    state = eye.look([A]).states[A]
    assert state.used_mib == 700  # version 1 counts what the driver keeps for itself
    assert state.compute is not None and [p.pid for p in state.compute] == list(range(1000, 1040))


def test_a_card_that_fell_off_the_bus_is_missing_and_its_neighbour_is_not(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A), gpu(B))
    assert eye.look([A, B]).states[B].present is True
    gpus.add(f"lost {B}")
    assert {u: s.present for u, s in eye.look([A, B]).states.items()} == {A: True, B: False}
    assert eye.look(["GPU-never-there"]).states["GPU-never-there"].present is False


def test_a_card_that_cannot_be_looked_at_may_be_the_one_that_is_asked_for(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A), "fail nvmlDeviceGetUUID 4")
    assert eye.look([A]).states[A].present is None
    gpus.say(gpu(A), "fail nvmlDeviceGetMemoryInfo_v2 999", "fail nvmlDeviceGetMemoryInfo 999")
    assert eye.look([A]).states[A].present is None


def test_xids_since_the_first_look(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A), gpu(B), f"xid {A} 13")
    assert eye.look([A, B]).states[A].xids == ()
    gpus.add(f"xid {B} 79", f"xid {B} 31")
    before = time.monotonic()
    states = eye.look([A, B]).states
    assert states[A].xids == () and [code for _, code in states[B].xids] == [79, 31]
    assert before <= states[B].xids[0][0] <= time.monotonic()
    gpus.add(f"xid {B} 79")
    assert [code for _, code in eye.look([B]).states[B].xids] == [79, 31, 79]


def test_a_driver_that_hangs_costs_one_deadline_and_one_process(
    gpus: FakeGpus, eye: GpuEye, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpueye, "RETRY_S", 0.2)
    gpus.say(gpu(A))
    assert eye.look([A]).error is None
    first = child(eye)
    gpus.add("hang nvmlDeviceGetMemoryInfo_v2")
    seen = eye.look([A], timeout_s=0.5)
    assert seen.states[A].present is None and seen.error == "the driver did not answer in time"
    began = time.monotonic()
    assert eye.look([A], timeout_s=60.0).states[A].present is None  # the deadline is not paid again
    assert time.monotonic() - began < 30
    until(lambda: (s := read_stat(first)) is None or s.state == "Z")
    gpus.say(gpu(A, 77))
    until(lambda: eye.look([A]).states[A].used_mib == 77)
    assert child(eye) != first and read_stat(first) is None


def test_a_library_that_crashes_takes_nobody_along(
    gpus: FakeGpus, eye: GpuEye, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpueye, "RETRY_S", 0.0)
    gpus.say(gpu(A), "crash nvmlDeviceGetPciInfo_v3")
    seen = eye.look([A])
    assert seen.states[A].present is None and "process is gone" in (seen.error or "")
    gpus.say(gpu(A))
    until(lambda: eye.look([A]).states[A].present)


def test_a_driver_that_is_not_loaded_is_asked_again(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A), "fail nvmlInit_v2 9")
    seen = eye.look([A])
    assert seen.states[A].present is None and seen.error == "nvmlInit_v2: 9" and not seen.blind
    gpus.say(gpu(A))
    assert eye.look([A]).states[A].present is True


def test_the_child_goes_with_its_asker(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A))
    eye.look([A])
    pid = child(eye)
    eye.close()
    assert read_stat(pid) is None and eye.look([A]).states[A].present is True  # and comes back when it is asked again


def test_from_the_zip_that_a_bare_pod_gets(gpus: FakeGpus, tmp_path: Path) -> None:
    """No site-packages, no checkout: the child finds its module in the zip again."""
    bundle = tmp_path / "orch.zip"
    bundle.write_bytes(remote_bundle().data)
    gpus.say(gpu(A, 77))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pods.keeper.guard, pods.remote.podhealth;"
        "from pods.remote.gpueye import GpuEye; print(GpuEye().look([sys.argv[2]]).states[sys.argv[2]].used_mib)"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(bundle), A]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("77.0\n", "", 0)


SMI = """#!/bin/sh
case "$*" in
  *query-gpu*)
    echo "GPU-11111111-2222, 4096, 144384, 0, 00000000:18:00.0"
    echo "GPU-33333333-4444, 9, 144384, [N/A], x" ;;
  *) echo "GPU-11111111-2222, 4242, 4000" ;;
esac
"""


NO_GPU = "nvidia-smi printed a line that is no GPU"


def fake_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")


def test_nvidia_smi_where_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eye: GpuEye) -> None:
    fake_smi(monkeypatch, tmp_path, SMI)
    seen = eye.look(["GPU-11111111-2222", "GPU-33333333-4444", "GPU-5", "MIG-6"])
    if seen.states["GPU-5"].present is not False:
        pytest.skip("this machine has a real NVML")
    first, second = seen.states["GPU-11111111-2222"], seen.states["GPU-33333333-4444"]
    assert (first.used_mib, first.ecc_uncorrected, first.bus) == (4096, 0, "0000:18:00")
    assert first.compute == (GpuProcess(4242, 4000),) and second.ecc_uncorrected is None and second.bus is None
    assert seen.states["MIG-6"].present is None and eye._child is None


@pytest.mark.parametrize(
    ("script", "present", "error"),
    [
        ("echo No devices were found; exit 6", False, None),
        ("echo Failed to initialize NVML: Unknown Error; exit 255", None, "nvidia-smi: Failed to initialize"),
        ("echo '!! no idea'", None, NO_GPU),
        ("true", None, NO_GPU),
        ("echo GPU-6, 1, 2, 0, x; echo GPU-5 is lost, 3", None, NO_GPU),
        ("case $* in *ecc*) exit 2 ;; *apps*) exit 1 ;; *) echo GPU-5, 9, 99 ;; esac", True, None),
    ],
)
def test_an_nvidia_smi_that_has_nothing_to_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eye: GpuEye, script: str, present: bool | None, error: str | None
) -> None:
    fake_smi(monkeypatch, tmp_path, f"#!/bin/sh\n{script}\n")
    seen = eye.look(["GPU-5"])
    if not eye._no_library:
        pytest.skip("this machine has a real NVML")
    assert seen.states["GPU-5"].present is present and not seen.blind
    assert (seen.error or "").startswith(error or "") and (error is not None or seen.error is None)


def test_a_machine_without_gpus_is_blind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eye: GpuEye) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    seen = eye.look(["GPU-5"])
    if not eye._no_library:
        pytest.skip("this machine has a real NVML")
    assert seen.blind and seen.states["GPU-5"].present is None
    assert eye.look([]).error is None


def test_an_nvidia_smi_whose_child_stays_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it started holds its output open, as one that hangs in the driver does for itself."""
    fake_smi(monkeypatch, tmp_path, f"#!/bin/sh\nsleep 60 &\necho $! >> {tmp_path}/pids\nwait\n")
    monkeypatch.setattr(gpusmi, "SMI_S", 1.0)
    began = time.monotonic()
    try:
        seen = gpusmi.by_smi()
        assert time.monotonic() - began < 30.0
    finally:
        for pid in (tmp_path / "pids").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert seen.error == "nvidia-smi: no answer within 1.0 s" and not seen.blind
