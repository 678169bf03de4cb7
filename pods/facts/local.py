"""This machine's facts, read by Python itself: what a launch here and the keeper need, in some 30 ms.

`collect` over the local transport gives more, and asks every interpreter in PATH for its version; some of those are
scripts that take 100 ms each.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from pods.facts.gpus import gpus_of
from pods.facts.kinds import PodFacts
from pods.facts.parse import parse_cgroups, parse_meminfo
from pods.transport.base import Transport
from pods.transport.local import LocalTransport
from workloads.contract.process import boot_id
from workloads.contract.rundir import OrchHome

_QUOTA_FILES = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")


def cpu_count() -> int:
    """CPUs that this process may use: affinity and the container's quota, at least 1."""
    count = float(len(os.sched_getaffinity(0)))
    quota = _quota()
    return max(1, int(min(count, quota) if quota else count))


def _quota() -> float | None:
    """The smallest quota of this process's cgroup and of all above it, v1 and v2."""
    lines = []
    for folder in _cpu_groups():
        for name in _QUOTA_FILES:
            try:
                lines.append(f"{folder} {name} {(folder / name).read_text().strip()}")
            except OSError:
                continue
    return parse_cgroups("\n".join(lines))[0]


def _cpu_groups() -> list[Path]:
    base = Path("/sys/fs/cgroup")
    try:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    groups: dict[Path, None] = {}
    for row in rows:
        if len(row) != 3 or (row[1] and "cpu" not in row[1].split(",")):
            continue
        top = base / "cpu" if row[1] else base / "unified" if (base / "unified").is_dir() else base
        here = top / row[2].lstrip("/")
        groups |= dict.fromkeys(p for p in (here, *here.parents) if p.is_relative_to(top))
    return list(groups)


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
