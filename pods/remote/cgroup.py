"""How much memory is used of the limit that will be hit first: of a cgroup (v1, v2, any ancestor), or of the machine.

Used is what cannot be given back by dropping page cache: usage less the file pages of `memory.stat` (cgroups(7),
Documentation/admin-guide/cgroup-v2.rst "memory.stat", cgroup-v1/memory.rst "stat file"); tmpfs counts as used. A
container sees its own cgroup as the root of the mount, or a path that leads nowhere: both are followed, and where no
limit can be seen the machine's MemAvailable counts. Reads a few small files; called by `podhealth` and the guard.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC_SELF = Path("/proc/self")
MEMINFO = Path("/proc/meminfo")
NO_LIMIT = 1 << 60  # v1 says "none" with a number just below 2^63
MAX_DEPTH = 32


@dataclass(frozen=True)
class Level:
    """One place where memory is limited."""

    where: str  # the cgroup's folder, or "the machine"
    used_bytes: int
    limit_bytes: int

    @property
    def fraction(self) -> float:
        return self.used_bytes / self.limit_bytes


def tightest(proc: Path = PROC_SELF, meminfo: Path = MEMINFO) -> Level | None:
    """The fullest of all limits that hold for the process with this folder in /proc, or None when none can be read."""
    return max(levels(proc, meminfo), key=lambda level: level.fraction, default=None)


def levels(proc: Path = PROC_SELF, meminfo: Path = MEMINFO) -> Iterator[Level]:
    """Every limit that holds for the process: of its cgroup, of those around it, of the machine."""
    for folder, kind in folders_of(proc):
        found = _read(folder, kind)
        if found is not None:
            yield found
    whole = _machine(meminfo)
    if whole is not None:
        yield whole


def folders_of(proc: Path) -> list[tuple[Path, str]]:
    """(folder, `cgroup` or `cgroup2`) of the process's memory cgroup and all around it that this mount shows."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    found = []
    for mount in mounts:
        head, _, tail = mount.partition(" - ")
        kind, _, options = [*tail.split(), "", "", ""][:3]
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        fields = head.split()
        if len(fields) < 5:
            continue
        root, point = fields[3], Path(fields[4])
        inside = os.path.relpath(_group_path(groups, kind), root)
        folder = point if inside.startswith("..") else Path(os.path.normpath(point / inside))
        for _ in range(MAX_DEPTH):
            found.append((folder, kind))
            if folder == point:
                break
            folder = folder.parent
    return found


def _group_path(groups: list[str], kind: str) -> str:
    """The path in this hierarchy, from the lines `id:controllers:path` of /proc/<pid>/cgroup."""
    for line in groups:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (kind == "cgroup2" and not controllers) or (kind == "cgroup" and "memory" in controllers.split(",")):
            return path
    return "/"


def _read(folder: Path, kind: str) -> Level | None:
    """None where there is no limit: also at the root, which has no such files in v2 and no limit in v1."""
    v2 = kind == "cgroup2"
    names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit, usage = ((folder / name).read_text().strip() for name in names)
        if not limit.isdigit() or not 0 < int(limit) < NO_LIMIT or not usage.isdigit():
            return None
        stat = _rows((folder / "memory.stat").read_text())
    except OSError:
        return None
    prefix = "" if v2 else "total_"  # v1: with the cgroups below
    cache = stat.get(f"{prefix}active_file", 0) + stat.get(f"{prefix}inactive_file", 0)
    return Level(str(folder), max(0, int(usage) - cache), int(limit))


def _machine(meminfo: Path) -> Level | None:
    try:
        rows = _rows(meminfo.read_text().replace(":", " "))
    except OSError:
        return None
    total, available = rows.get("MemTotal", 0) << 10, rows.get("MemAvailable", -1) << 10
    return Level("the machine", max(0, total - available), total) if total > 0 and available >= 0 else None


def _rows(text: str) -> dict[str, int]:
    """`name number ...` lines; others are passed over."""
    words = (line.split() for line in text.splitlines())
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}
