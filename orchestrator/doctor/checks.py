"""What `orch doctor` looks at on this machine. Each check is a small function that gives findings and changes nothing.

A finding is `ok`, `warn` (orch works, something is weaker) or `fail` (orch will not work), with one thing to type.
Versions come from package metadata: neither torch nor ray is imported.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from orchestrator.doctor.names import foreign_packages
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome

Level = Literal["ok", "warn", "fail"]
PYTHONS = ((3, 11), (3, 13))
SUPPORTED = {"ray": ((2, 60), (2, 61)), "torch": ((2, 11), (2, 14))}
GIB = 1 << 30
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 * GIB, 10 * GIB
SHM_WARN_BYTES = 256 << 20
OPEN_FILES_WARN = 4096


@dataclass(frozen=True)
class Check:
    name: str
    level: Level
    what: str
    fix: str | None = None


def examine(home: OrchHome) -> list[Check]:
    """Every finding. A check that cannot be carried out is a warning, never the end of the others."""
    steps: tuple[Callable[[OrchHome], list[Check]], ...] = (
        _python, _names, _home, _disk, _shm, _versions, _gpus, _keeper, _ports, _dumps, _limits,
    )  # fmt: skip
    found: list[Check] = []
    for step in steps:
        try:
            found += step(home)
        except (OSError, OrchError) as e:
            found.append(Check(step.__name__.strip("_"), "warn", f"could not be looked at: {e}"))
    return found


def _python(_: OrchHome) -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    low, high = PYTHONS
    if low <= sys.version_info[:2] < high:
        return [Check("python", "ok", f"{version} ({sys.executable})")]
    return [Check("python", "fail", f"{version} is not 3.11 or 3.12", "make a virtual environment with Python 3.12")]


def _names(_: OrchHome) -> list[Check]:
    intruders = foreign_packages()
    if not intruders:
        return [Check("names", "ok", "orchestrator, pods, workloads and kernels are orch's own")]
    return [Check("names", "fail" if i.shadows else "warn", i.what, i.fix) for i in intruders]


def _home(home: OrchHome) -> list[Check]:
    path = home.path
    try:
        st = path.stat()
    except FileNotFoundError:
        return [Check("home", "ok", f"{path} is made at the first launch")]
    except OSError as e:  # a file on the way
        return [Check("home", "fail", f"{path} cannot be used: {e.strerror}", "export ORCH_HOME=~/.orch")]
    if not stat.S_ISDIR(st.st_mode):
        return [Check("home", "fail", f"{path} is not a directory", "export ORCH_HOME=~/.orch")]
    if st.st_uid != os.geteuid():
        return [Check("home", "fail", f"{path} belongs to uid {st.st_uid}", "export ORCH_HOME=~/.orch")]
    mode = stat.S_IMODE(st.st_mode)
    if mode & 0o077:
        return [Check("home", "warn", f"{path} has mode {mode:04o}: others can look in", f"chmod 700 {path}")]
    if not os.access(path, os.W_OK | os.X_OK):
        return [Check("home", "fail", f"{path} cannot be written", f"chmod u+rwx {path}")]
    return [Check("home", "ok", str(path))]


def _disk(home: OrchHome) -> list[Check]:
    place = next(p for p in (home.path, *home.path.parents) if p.exists())
    free = shutil.disk_usage(place).free
    level: Level = "fail" if free < DISK_FAIL_BYTES else "warn" if free < DISK_WARN_BYTES else "ok"
    fix = None if level == "ok" else "free some space, or point ORCH_HOME to another disk"
    return [Check("disk", level, f"{free / GIB:.1f} GiB free at {place}", fix)]


def _shm(_: OrchHome) -> list[Check]:
    size = shutil.disk_usage("/dev/shm").total
    if size < SHM_WARN_BYTES:
        return [
            Check(
                "shm",
                "warn",
                f"/dev/shm has {size >> 20} MiB",
                "docker run --shm-size=1g (loaders with workers need it)",
            )
        ]
    return [Check("shm", "ok", f"/dev/shm has {size >> 20} MiB")]


def _versions(_: OrchHome) -> list[Check]:
    return [_version(name, *bounds) for name, bounds in SUPPORTED.items()]


def _version(name: str, low: tuple[int, int], high: tuple[int, int]) -> Check:
    fix = "pip install 'orch-runs[pod]'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "warn", "not installed here: this machine can be an operator, not a pod", fix)
    parts = version.split("+")[0].split(".")
    found = tuple(int(p) for p in parts[:2] if p.isdigit())
    if low <= found < high:
        return Check(name, "ok", version)
    wanted = f"{low[0]}.{low[1]} up to, not with, {high[0]}.{high[1]}"
    return Check(name, "fail" if name == "ray" else "warn", f"{version} is not {wanted}", fix)


def _gpus(home: OrchHome) -> list[Check]:
    from pods.facts import local_facts

    facts = local_facts(home, sys.executable)
    if facts.gpu_error:
        return [Check("gpus", "warn", f"could not be listed: {facts.gpu_error}", "nvidia-smi")]
    if not facts.gpus:
        return [Check("gpus", "ok", f"none; {facts.cpus} CPUs, {facts.ram_mib >> 10} GiB of memory")]
    return [Check("gpus", "ok", f"{len(facts.gpus)} x {facts.gpus[0].name}, {facts.gpus[0].memory_mib >> 10} GiB")]


def _keeper(home: OrchHome) -> list[Check]:
    from pods.keeper.client import KeeperClient, running

    record = running(home)
    if record is None:
        return [Check("keeper", "ok", "none runs; a launch starts it"), Check("ray state", "ok", "down")]
    client = KeeperClient(home)
    try:
        client.ping()
        ray = client.ray()
    except OrchError as e:
        return [Check("keeper", "fail", f"pid {record.get('pid')} does not answer: {e.what}", f"see {home.keeper_log}")]
    state, error = str(ray.get("state")), ray.get("error")
    level: Level = "fail" if state == "failed" else "ok"
    told = state + (f": {error}" if error else "")
    return [
        Check("keeper", "ok", f"pid {record.get('pid')}"),
        Check("ray state", level, told, f"see {home.keeper_log}" if level == "fail" else None),
    ]


def _ports(home: OrchHome) -> list[Check]:
    from pods.keeper.rayports import FIRST, free_block

    try:
        block = free_block("0" * 12)
    except OSError:
        return [
            Check("ports", "fail", f"no block of ports above {FIRST} is free for Ray", "ss -ltnp shows who holds them")
        ]
    return [Check("ports", "ok", f"free for Ray from {block.gcs}")]


def _dumps(_: OrchHome) -> list[Check]:
    beside = Path(sys.executable).parent / "py-spy"
    if not (beside.exists() or shutil.which("py-spy")):
        return [Check("py-spy", "warn", "missing: a rank without faulthandler cannot be dumped", "pip install py-spy")]
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = 0
    if scope and os.geteuid() != 0:
        return [
            Check(
                "py-spy",
                "warn",
                f"ptrace is restricted (ptrace_scope {scope})",
                "only ranks without faulthandler are affected",
            )
        ]
    return [Check("py-spy", "ok", "there, for ranks without faulthandler")]


def _limits(_: OrchHome) -> list[Check]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES_WARN:
        return [
            Check("open files", "warn", f"at most {hard}; Ray wants {OPEN_FILES_WARN}", "ulimit -Hn 65536, as root")
        ]
    return [Check("open files", "ok", "unlimited" if hard == resource.RLIM_INFINITY else f"at most {hard}")]
