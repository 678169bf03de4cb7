"""The ranks of one run that live on this pod, as the memory guard needs them: process, devices, memory. Reads only.

Records and orders are read again when the attempt's folder changes. Used by `guard` alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.remote.cgroup import Level, tightest
from pods.remote.family import find_families
from pods.remote.rankrecords import newest_attempt, process_of, record, recorded_ranks
from workloads.contract.files import try_read_json
from workloads.contract.process import ProcId, boot_id, read_stat
from workloads.contract.rundir import RunDir

FAMILY_S = 2.0
_RSS = re.compile(r"^(RssAnon|RssShmem):\s+(\d{1,15}) kB$", re.MULTILINE)


@dataclass(frozen=True)
class RankHere:
    rank: int
    attempt: int
    ident: ProcId
    devices: tuple[str, ...]


@dataclass
class RanksHere:
    """Of one run; `look` again and again."""

    run: RunDir
    _stamp: tuple[int, int] = (-1, -1)
    _known: list[RankHere] = field(default_factory=list)

    def stamp(self) -> tuple[int, int]:
        """The newest attempt and when its folder changed."""
        attempt = newest_attempt(self.run)
        return (attempt, _mtime_ns(self.run.attempt_dir(attempt))) if attempt else (0, 0)

    def look(self) -> list[RankHere]:
        """Living ranks of the newest attempt, by number."""
        stamp = attempt, _ = self.stamp()
        if stamp != self._stamp:
            self._stamp, self._known = stamp, self._read(attempt) if attempt else []
        return [r for r in self._known if _lives(r.ident)]

    def _read(self, attempt: int) -> list[RankHere]:
        found, boot = [], boot_id()
        for rank in recorded_ranks(self.run, attempt):
            ident = process_of(record(self.run, attempt, rank))
            order = try_read_json(self.run.rank_order(attempt, rank)) or {}
            if ident is not None and ident.boot_id == boot:
                found.append(RankHere(rank, attempt, ident, _devices(order)))
        return found


def over_meanwhile(run: RunDir, ranks: list[RankHere]) -> str:
    """Why what was seen of these ranks, of one attempt, is past; "" while one of them lives and no attempt followed."""
    newest, theirs = newest_attempt(run), ranks[0].attempt
    if newest != theirs:
        return f"attempt {theirs} is over, and attempt {newest} was begun meanwhile"
    return "" if any(_lives(r.ident) for r in ranks) else f"the ranks of attempt {theirs} ended meanwhile"


def _lives(ident: ProcId) -> bool:
    """As `ProcId.alive`, for one that is known to be of this boot: several times a second for every rank."""
    st = read_stat(ident.pid)
    return st is not None and st.start_time == ident.start_time and st.state not in "ZX"


def _devices(order: Mapping[str, Any]) -> tuple[str, ...]:
    row = order.get("devices")
    return tuple(d for d in row if isinstance(d, str)) if isinstance(row, list) else ()


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def processes_of(run: RunDir, ranks: list[RankHere]) -> dict[ProcId, int]:
    """Every living process of these ranks -> its rank: the rank itself and whatever carries its mark. Bounded."""
    if not ranks:
        return {}
    living = {r.rank: r.ident for r in ranks}
    families = find_families(run, ranks[0].attempt, living, time.monotonic() + FAMILY_S)
    found = {ident: rank for rank in living for ident in families.of(rank).others}
    return found | {ident: rank for rank, ident in living.items()}


def memory_mib(pid: int) -> float:
    """What ends with the process: anonymous and shared memory, without the files it maps (proc(5), status)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(kib) for _, kib in _RSS.findall(text)) / 1024


def tightest_for(ranks: list[RankHere]) -> Level | None:
    """The fullest limit that holds for any of them; ranks of one cgroup are looked at once."""
    found: dict[str, Level] = {}
    for rank in ranks:
        proc = Path(f"/proc/{rank.ident.pid}")
        try:
            group = (proc / "cgroup").read_text()
        except OSError:
            continue
        if group not in found and (level := tightest(proc)) is not None:
            found[group] = level
    return max(found.values(), key=lambda level: level.fraction, default=None)
