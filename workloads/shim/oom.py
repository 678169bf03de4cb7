"""How many processes of our memory cgroup the kernel has killed for want of memory (cgroup v1 and v2).

`memory.events` (v2, cgroups(7)) and `memory.oom_control` (v1) both have a line `oom_kill N`. Used by the shim before it
starts a rank and after the rank died. None where no cgroup tells: a container without the mount.
"""

from __future__ import annotations

import os
from pathlib import Path

PROC_SELF = Path("/proc/self")


def oom_kills(proc: Path = PROC_SELF) -> int | None:
    """The counter of the cgroup that `proc` is in, or None."""
    for file in _counter_files(proc):
        count = _count_in(file)
        if count is not None:
            return count
    return None


def _count_in(file: Path) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) == 2 and words[0] == "oom_kill" and words[1].isdigit():
            return int(words[1])
    return None


def _counter_files(proc: Path) -> list[Path]:
    """Where the counter may lie. A container may see its own cgroup as the root of the mount, so that is tried too."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    files = []
    for mount in mounts:
        head, _, tail = mount.partition(" - ")
        kind, _, options = [*tail.split(), "", "", ""][:3]
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        root, point = head.split()[3:5]
        name = "memory.oom_control" if kind == "cgroup" else "memory.events"
        inside = os.path.relpath(_group_path(groups, kind), root)
        folders = [] if inside.startswith("..") else [Path(point) / inside]
        files += [folder / name for folder in (*folders, Path(point))]
    return files


def _group_path(groups: list[str], kind: str) -> str:
    """Our path in this hierarchy, from the lines `id:controllers:path` of /proc/self/cgroup."""
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if (kind == "cgroup2" and not controllers) or (kind == "cgroup" and "memory" in controllers.split(",")):
            return path
    return "/"
