"""How much memory this process may still take: of the host, and of the container it lies in. Standard library only.

Reads /proc/meminfo (proc(5)) and the memory controller of cgroups v2 and v1; a file that is not there says nothing.
Called before a copy of a rank's state is made.
"""

from __future__ import annotations

import re
from pathlib import Path

_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The least of what host and container leave; None when neither says. Page cache counts as used in a container."""
    found = [_host(proc / "meminfo"), *(_container(cgroup / limit, cgroup / used) for limit, used in _CGROUPS)]
    return min((f for f in found if f is not None), default=None)


def _host(meminfo: Path) -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) << 10 if match else None


def _container(limit: Path, used: Path) -> int | None:
    try:
        whole, taken = limit.read_text().strip(), used.read_text().strip()
    except OSError:
        return None
    return max(0, int(whole) - int(taken)) if whole.isdigit() and taken.isdigit() else None
