"""Pure parsers of the machine's own words: /proc, cgroups, mounts, `stat -f`, `df`, `getconf`, `date`.

Text in, values out; anything that is not as expected is None or left out. None of them raises, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from pods.facts.kinds import Disk, Interpreter

UNLIMITED_BYTES = 1 << 60
MAX_PYTHONS = 32
_LIMIT = re.compile(
    r"^(Max open files|Max processes|Max locked memory) +(\d{1,20}|unlimited) +(\d{1,20}|unlimited)", re.M
)
_CGROUP = re.compile(
    r"^(/sys/fs/cgroup[^\n]{0,1000}?) ([a-z_.]{3,40}) (-?\d{1,20}|max|(?:\d{1,20}|max) \d{1,20})$", re.M
)

Limit = tuple[int | None, int | None]


def printable(text: str | None, limit: int = 200) -> str | None:
    """`text` when it is one line that can be shown as it is; else None."""
    text = (text or "").strip()
    return text if text and len(text) <= limit and text.isprintable() else None


def number(text: str | None) -> float | None:
    text = (text or "").strip()
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text) else None


def parse_pairs(text: str) -> dict[str, list[str]]:
    """Lines `key value`."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value.strip())
    return found


def parse_id(text: str) -> tuple[int | None, str | None]:
    """(uid, user) of `id`. A uid without a name, as in many containers, has none."""
    m = re.match(r"uid=([0-9]{1,10})(?:\(([A-Za-z0-9_.$@\\-]{1,64})\))?", text)
    return (int(m[1]), m[2]) if m else (None, None)


def parse_meminfo(text: str) -> tuple[int, int]:
    """(MemTotal, MemAvailable) in MiB from /proc/meminfo; 0 for one that is not there."""
    kib = {m[1]: int(m[2]) for m in re.finditer(r"^(\w{1,20}):\s+([0-9]{1,15}) kB", text, re.M)}
    return kib.get("MemTotal", 0) // 1024, kib.get("MemAvailable", kib.get("MemFree", 0)) // 1024


def parse_cpu_max(text: str) -> float | None:
    """CPUs that cgroup v2's `cpu.max` allows, or None for no limit."""
    m = re.fullmatch(r"([0-9]{1,15}) ([0-9]{1,15})\s*", text)
    return int(m[1]) / int(m[2]) if m and int(m[2]) else None


def parse_cpu_list(text: str) -> int | None:
    """CPUs named by a list such as `0-3,8,10-11`."""
    count = 0
    for part in text.strip().split(","):
        m = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if m is None:
            return None
        count += max(int(m[2] or m[1]) - int(m[1]) + 1, 0)
    return count or None


def parse_cgroups(text: str) -> tuple[float | None, int | None, int | None]:
    """(CPUs allowed, bytes of memory allowed, bytes left of them) over a cgroup and all above it, v1 and v2.

    None: no limit. What a cgroup holds of file pages that can be dropped counts as left.
    """
    values = {(m[1], m[2]): m[3] for m in _CGROUP.finditer(text)}
    quotas, limits, left = [], [], []
    for (group, name), value in values.items():
        if name == "cpu.max":
            quotas.append(parse_cpu_max(value))
        elif name == "cpu.cfs_quota_us" and (period := values.get((group, "cpu.cfs_period_us"))):
            quotas.append(parse_cpu_max(f"{value} {period}"))
        elif name in ("memory.max", "memory.limit_in_bytes") and value.isdigit() and int(value) < UNLIMITED_BYTES:
            limits.append(int(value))
            v2 = name == "memory.max"
            used = values.get((group, "memory.current" if v2 else "memory.usage_in_bytes"), "")
            cached = values.get((group, "inactive_file" if v2 else "total_inactive_file"), "")
            if used.isdigit():
                busy = int(used) - (int(cached) if cached.isdigit() else 0)
                left.append(max(int(value) - max(busy, 0), 0))
    return min((q for q in quotas if q), default=None), min(limits, default=None), min(left, default=None)


def parse_limits(text: str) -> dict[str, Limit]:
    """(soft, hard) by the name that /proc/<pid>/limits has for it; None inside a pair is unlimited."""
    return {m[1]: (_limit(m[2]), _limit(m[3])) for m in _LIMIT.finditer(text)}


def _limit(text: str) -> int | None:
    return None if text == "unlimited" else int(text)


def parse_libc(text: str) -> str | None:
    if m := re.search(r"^glibc ([0-9]{1,2}\.[0-9]{1,3})\s*$", text, re.M):
        return f"glibc {m[1]}"
    if m := re.search(r"^musl libc[^\n]*\nVersion ([0-9]{1,2}(?:\.[0-9]{1,3}){1,2})\s*$", text, re.M):
        return f"musl {m[1]}"
    return None


def parse_pythons(text: str) -> tuple[Interpreter, ...]:
    """Interpreters that told their version, in the order they are preferred in."""
    found = re.findall(
        r"^(/[^\n\x00-\x1f]{1,500}) Python ([0-9]\.[0-9]{1,3}(?:\.[0-9]{1,3})?)[^\n ]{0,20}\s*?$", text, re.M
    )
    return tuple(Interpreter(path, version) for path, version in found[:MAX_PYTHONS] if path.isprintable())


def version_key(version: str) -> tuple[int, ...]:
    return tuple(int(p) for p in re.findall(r"[0-9]{1,6}", version)[:4])


def parse_uptime(text: str | None) -> float | None:
    return number((text or "").split(" ")[0])


def parse_date(text: str) -> tuple[float, float] | None:
    """(`date +%s.%N` as seconds, how exact it is). A `date` that has no %N is exact to a second."""
    m = re.fullmatch(r"([0-9]{9,11})(?:\.([0-9]{9}))?(?:\.?%?N)?\.?", text.strip())
    if m is None:
        return None
    return (float(m[1]) + int(m[2]) / 1e9, 0.0) if m[2] else (float(m[1]) + 0.5, 0.5)


def clock_offset(
    asked: float, answered: float, begin: tuple[float, float] | None, end: tuple[float, float] | None
) -> tuple[float, float] | None:
    """(offset, uncertainty) of a clock that was read at the beginning and the end of what took from asked to answered.

    The first reading was not made before `asked`, the last not after `answered`: the truth lies between.
    """
    if begin is None or end is None or answered < asked:
        return None
    high, low = begin[0] + begin[1] - asked, end[0] - end[1] - answered
    return (high + low) / 2, abs(high - low) / 2


def parse_disks(text: str, mounts: str) -> tuple[tuple[Disk, ...], bool | None]:
    """Disks by what lies on them, and whether orch's home can be written."""
    pairs = parse_pairs(text)
    sizes = _stat_sizes(text) or _df_sizes(text)
    points = parse_mounts(mounts)
    disks = []
    for entry in pairs.get("at", [])[:16]:
        what, _, path = entry.partition(" ")
        if not re.fullmatch(r"[a-z]{2,12}", what) or not path.startswith("/") or not path.isprintable():
            continue
        mount, kind, options = mount_of(path, points) or (None, None, ())
        size = sizes.get(path) or (sizes.get(mount) if mount else None) or (None, None, None, None)
        disks.append(Disk(what, path, mount, kind, *size, options))
    writable = {"yes": True, "no": False}.get((pairs.get("writable") or [""])[0])
    return tuple(disks), writable


Size = tuple[int | None, int | None, int | None, int | None]


def _stat_sizes(text: str) -> dict[str, Size]:
    """(size, free, inodes, free inodes), MiB, of `fs <block> <blocks> <free> <inodes> <free inodes> <path>`."""
    found: dict[str, Size] = {}
    for m in re.finditer(
        r"^fs ([0-9]{1,9}) ([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,20}) (/.*)$", text, re.M
    ):
        block = int(m[1])
        found[m[6]] = (int(m[2]) * block >> 20, int(m[3]) * block >> 20, int(m[4]), int(m[5]))
    return found


def _df_sizes(text: str) -> dict[str, Size]:
    """The same by mount point from `df -Pk`, which says nothing of inodes."""
    found: dict[str, Size] = {}
    for m in re.finditer(r"^\S.* +([0-9]{1,18}) +[0-9]{1,18} +([0-9]{1,18}) +[0-9-]{1,5}% (/.*)$", text, re.M):
        found[m[3]] = (int(m[1]) >> 10, int(m[2]) >> 10, None, None)
    return found


Mounts = Mapping[str, tuple[str, tuple[str, ...]]]


def parse_mounts(text: str) -> Mounts:
    """(type, options) by mount point from /proc/self/mounts; of several on one point the last is on top."""
    found = {}
    for line in text.splitlines():
        cells = line.split(" ")
        if len(cells) == 6 and cells[1].startswith("/") and len(cells[3]) < 4096:
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), cells[1])
            found[point] = (printable(cells[2], 40) or "?", tuple(o for o in cells[3].split(",") if printable(o)))
    return found


def mount_of(path: str, mounts: Mounts) -> tuple[str, str, tuple[str, ...]] | None:
    """(mount point, type, options) of the file system that `path`, absolute and without links, lies on."""
    here = PurePosixPath(path)
    for point in (str(here), *map(str, here.parents)):
        if point in mounts:
            return (point, *mounts[point])
    return None


def container_of(marks: Iterable[str], cgroups: Iterable[str]) -> str | None:
    """docker, podman, lxc or kubernetes, by the marks they leave; None for a machine of its own, as far as one sees."""
    marks, lines = set(marks), "\n".join(cgroups)
    if "kubernetes" in marks or "kubepods" in lines:
        return "kubernetes"
    if "podman" in marks or "libpod" in lines:
        return "podman"
    if "docker" in marks or "/docker" in lines:
        return "docker"
    return "lxc" if "/lxc" in lines else None
