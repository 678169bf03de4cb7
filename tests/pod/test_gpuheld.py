"""GPU memory before a start and after a halt: who holds it, what did not come back. Through the library that answers
from a file, with real processes as holders."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.remote import gpuheld
from pods.remote.gpueye import GpuEye
from pods.remote.gpuheld import gpu_memory_back, held, holders, used
from pods.remote.gpustate import GpuProcess
from tests.pod.fakenvml import A, B, FakeGpus, gpu, install

NOBODY = 4_000_000  # above pid_max of most machines


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpus:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def eye() -> Iterator[GpuEye]:
    made = GpuEye()
    yield made
    made.close()


@pytest.fixture
def holder() -> Iterator[int]:
    """`python -c ...`, whose arguments after the first are nobody's business."""
    script = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, "--token=hunter2"])
    yield process.pid
    process.kill()
    process.wait(timeout=120)


def test_the_holder_is_named_with_figures_command_and_user(gpus: FakeGpus, eye: GpuEye, holder: int) -> None:
    gpus.say(gpu(A, 117_760), f"proc {A} {holder} 117000", gpu(B))
    words = held([A, B], eye, wait_s=0.0)
    user = pwd.getpwuid(os.getuid()).pw_name
    assert words.keys() == {A} and words[A].startswith(f"115 GiB of 141 are held by pid {holder} (")
    assert words[A].endswith(f", user {user})") and "python" in words[A] and "hunter2" not in words[A]


def test_several_holders_largest_first(holder: int) -> None:
    listed = (GpuProcess(holder, 2048.0), GpuProcess(os.getpid(), 40_960.0), GpuProcess(NOBODY, 99.0))
    words = holders(listed)
    assert words.index(f"pid {os.getpid()}") < words.index(f"pid {holder}") and "40 GiB)" in words
    assert str(NOBODY) not in words


def test_a_holder_in_another_container_is_not_guessed(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 117_760), f"proc {A} {NOBODY} 117000")
    assert "by processes that cannot be seen from here" in held([A], eye, wait_s=0.0)[A]


def test_a_number_that_is_somebody_elses_here_is_not_named(
    gpus: FakeGpus, eye: GpuEye, holder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the driver's pid 4242 may be our shell: it has no driver open."""
    monkeypatch.setattr(gpuheld, "FIRST_PID_NAMESPACE", "pid:[1]")
    gpus.say(gpu(A, 117_760), f"proc {A} {holder} 117000")
    assert f"pid {holder}" not in held([A], eye, wait_s=0.0)[A]


def test_small_amounts_and_displays_are_in_nobodys_way(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 900), gpu(B, 3000), f"gfx {B} {NOBODY} 2500")
    assert held([A, B], eye) == {}


def test_what_cannot_be_told_does_not_keep_a_run_from_starting(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 117_760), "fail nvmlInit_v2 9")
    assert held([A], eye) == {} == used([A], eye)
    assert held(["GPU-missing"], eye) == {}


def test_memory_that_drains_is_waited_for(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 117_760))
    threading.Timer(0.5, lambda: gpus.say(gpu(A, 4))).start()
    assert held([A], eye, wait_s=20.0) == {}


def test_after_a_halt_all_is_back_or_named(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A, 500), gpu(B, 0))
    baseline = used([A, B], eye)
    assert baseline == {A: 500.0, B: 0.0}
    gpus.say(gpu(A, 600), gpu(B, 81_920), f"proc {B} {NOBODY} 81000")
    began = time.monotonic()
    (left,) = gpu_memory_back([A, B], baseline, eye, wait_s=0.5)
    assert time.monotonic() - began >= 0.5
    assert left.startswith(f"{B}: 80 GiB are still used, 0.0 before the start, held by processes that cannot be seen")
    threading.Timer(0.3, lambda: gpus.say(gpu(A, 600), gpu(B, 10))).start()
    assert gpu_memory_back([A, B], baseline, eye, wait_s=20.0) == []


def test_after_a_halt_a_card_that_says_nothing_is_not_called_clean(gpus: FakeGpus, eye: GpuEye) -> None:
    gpus.say(gpu(A), f"lost {A}", gpu(B), "fail nvmlDeviceGetMemoryInfo_v2 999", "fail nvmlDeviceGetMemoryInfo 999")
    left = gpu_memory_back([A, B], {}, eye, wait_s=0.0)
    assert left[1] == f"{B}: its memory could not be looked at (not told)"
    gpus.say(gpu(A), f"lost {A}")
    assert gpu_memory_back([A], {}, eye, wait_s=0.0) == [f"{A} is missing"]


def test_by_nvidia_smi_what_it_said_before_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eye: GpuEye
) -> None:
    """It is asked rarely, since it is slow; not when the answer decides whether a halt was clean."""
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    smi.write_text("#!/bin/sh\necho GPU-7, 81920, 144384, 0, 0000:18:00.0\n")
    smi.chmod(0o755)
    if eye.look(["GPU-7"]).states["GPU-7"].used_mib != 81_920:
        pytest.skip("this machine has a real NVML")
    smi.write_text("#!/bin/sh\necho GPU-7, 9, 144384, 0, 0000:18:00.0\n")
    assert eye.look(["GPU-7"]).states["GPU-7"].used_mib == 81_920
    assert gpu_memory_back(["GPU-7"], {}, eye, wait_s=0.0) == []
