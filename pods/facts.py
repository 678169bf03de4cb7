"""What a pod is: a fact is a command and a pure parser of its output.

`collect` asks; every `parse_*` is a function of text and is tested on recorded text. A fact that cannot be had is
said (`gpu_error`), never guessed. Called by the plan (`orchestrator.jobs`) and by the keeper.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pods.transport.base import Result, Transport
from pods.transport.local import LocalTransport
from workloads.contract.errors import OrchError
from workloads.contract.process import boot_id
from workloads.contract.rundir import OrchHome

NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,uuid,name,memory.total,memory.used",
    "--format=csv,noheader,nounits",
)
NVIDIA_SMI_TIMEOUT_S = 10.0
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z./-]{4,80}")


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    memory_mib: int
    used_mib: int


@dataclass(frozen=True)
class PodFacts:
    hostname: str
    boot_id: str
    cpus: int
    ram_mib: int
    ram_available_mib: int
    shm_mib: int
    home_free_mib: int
    python: str
    python_version: str
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str | None = None  # why the GPUs could not be listed; None when there are none or all answered


def parse_nvidia_smi(result: Result) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs of one `nvidia-smi` query, and what was wrong with it. A machine without GPUs is not wrong: ((), None)."""
    if result.exit_code == 127:
        return (), None
    text = (result.stdout + result.stderr).strip()
    if "No devices were found" in text:
        return (), None
    if not result.ok:
        return (), f"nvidia-smi exit code {result.exit_code}: {text.splitlines()[0][:200] if text else 'no output'}"
    gpus, bad = [], []
    for line in result.stdout.splitlines():
        if not line.strip():
            continue
        gpu = _parse_gpu_line(line)
        if gpu is None:
            bad.append(line.strip()[:120])
        else:
            gpus.append(gpu)
    if len({g.uuid for g in gpus}) != len(gpus):
        return (), "nvidia-smi names one GPU twice"
    return tuple(gpus), f"nvidia-smi printed a line that is no GPU: {bad[0]!r}" if bad else None


def _parse_gpu_line(line: str) -> Gpu | None:
    cells = [c.strip() for c in line.split(",")]
    if len(cells) != 5 or not _UUID.fullmatch(cells[1]):
        return None
    if not all(cells[i].isascii() and cells[i].isdigit() for i in (0, 3, 4)):
        return None
    return Gpu(int(cells[0]), cells[1], cells[2][:80], int(cells[3]), int(cells[4]))


def parse_meminfo(text: str) -> tuple[int, int]:
    """(MemTotal, MemAvailable) in MiB from /proc/meminfo; 0 for one that is not there."""
    kib = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return kib.get("MemTotal", 0) // 1024, kib.get("MemAvailable", 0) // 1024


def parse_cpu_max(text: str) -> float | None:
    """CPUs that cgroup v2's `cpu.max` allows, or None for no limit."""
    m = re.fullmatch(r"(\d+) (\d+)\s*", text)
    return int(m[1]) / int(m[2]) if m and int(m[2]) else None


def cpu_count() -> int:
    """CPUs that this process may use: affinity and the container's quota, at least 1."""
    count = float(len(os.sched_getaffinity(0)))
    try:
        quota = parse_cpu_max(Path("/sys/fs/cgroup/cpu.max").read_text())
    except OSError:
        quota = None
    return max(1, int(min(count, quota) if quota else count))


def gpus_of(transport: Transport) -> tuple[tuple[Gpu, ...], str | None]:
    """The pod's GPUs now. A hung nvidia-smi is an error in words, not an exception."""
    try:
        return parse_nvidia_smi(transport.run(NVIDIA_SMI, timeout_s=NVIDIA_SMI_TIMEOUT_S))
    except OrchError as e:
        return (), f"{e.what} ({e.expected})"


def local_facts(home: OrchHome, python: str) -> PodFacts:
    """Facts of this machine. `python` is the interpreter that would run the ranks."""
    transport = LocalTransport()
    gpus, gpu_error = gpus_of(transport)
    ram_mib, available_mib = parse_meminfo(Path("/proc/meminfo").read_text())
    return PodFacts(
        hostname=platform.node(),
        boot_id=boot_id(),
        cpus=cpu_count(),
        ram_mib=ram_mib,
        ram_available_mib=available_mib,
        shm_mib=_free_mib(Path("/dev/shm")),
        home_free_mib=_free_mib(home.path),
        python=python,
        python_version=_python_version(transport, python),
        gpus=gpus,
        gpu_error=gpu_error,
    )


def _free_mib(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free >> 20


def _python_version(transport: Transport, python: str) -> str:
    result = transport.run([python, "-I", "-S", "-c", "import platform;print(platform.python_version())"], timeout_s=20)
    return result.stdout.strip() if result.ok else ""
