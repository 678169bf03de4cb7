"""What the memory guard of a pod may do, and when: limits out of run.json, one firing an episode, sentences. Pure.

Reads plain JSON, since a keeper has no pydantic: what is missing or wrong in `job.health.guard` is as in
`workloads.contract.config.health.GuardSpec`. Used by `guard` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workloads.contract.health import Mode, Rung

MIB_A_GIB = 1024
MIB = 1 << 20
REARM = 0.95  # of the limit: an episode ends below it
REARM_S = 60.0  # and not sooner, so that figures around a limit do not fill the log
LOOK_AGAIN_S = 600.0
LAST_RESORT = 0.6  # of what is left above the host limit: a halt that is under way does not wait beyond it
ACTIONS = (Rung.NOTE, Rung.DUMP, Rung.HALT, Rung.KILL)


@dataclass(frozen=True)
class Limits:
    mode: Mode = Mode.OBSERVE
    gpu_limit_gb: float | None = None
    gpu_limit_fraction: float = 0.9
    over_s: float = 0.0
    poll_s: float = 0.5
    host_fraction: float = 0.95
    host_over_s: float = 5.0
    action: Rung = Rung.HALT

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Limits:
        """From run.json, or what has an attempt's job in its place. The milder of `health.mode` and
        `health.guard.mode` counts."""
        health = _object(_object(spec.get("job")).get("health"))
        row = _object(health.get("guard"))
        own = cls()
        limits = ("gpu_limit_gb", "gpu_limit_fraction", "host_limit_fraction")
        given = any(row.get(k) is not None for k in limits) or row.get("action") in ACTIONS
        mode = _mode(row.get("mode"), Mode.ACT if given else own.mode)
        action = row.get("action")
        limit_gb = row.get("gpu_limit_gb")
        return cls(
            mode=min(mode, _mode(health.get("mode"), Mode.ACT), key=list(Mode).index),
            gpu_limit_gb=None if limit_gb is None else _number(limit_gb, 0.0, math.inf, None),
            gpu_limit_fraction=_number(row.get("gpu_limit_fraction"), 0.0, 1.0, own.gpu_limit_fraction),
            over_s=_number(row.get("over_secs"), -1.0, 1e6, own.over_s),
            poll_s=max(0.05, _number(row.get("poll_secs"), 0.0, 60.0, own.poll_s)),
            host_fraction=_number(row.get("host_limit_fraction"), 0.0, 1.0, own.host_fraction),
            host_over_s=_number(row.get("host_over_secs"), -1.0, 1e6, own.host_over_s),
            action=Rung(action) if action in ACTIONS else own.action,
        )

    def gpu_limit_mib(self, total_mib: float | None) -> float | None:
        if self.gpu_limit_gb is not None:
            return self.gpu_limit_gb * MIB_A_GIB
        return None if total_mib is None else total_mib * self.gpu_limit_fraction

    @property
    def host_last_resort(self) -> float:
        return self.host_fraction + (1.0 - self.host_fraction) * LAST_RESORT

    def rungs(self, *, ours: bool, halting: bool) -> list[Rung]:
        """What is done about a breach. `ours`: this run's processes are what fills it; else it is only told."""
        if self.mode == Mode.OFF:
            return []
        if not ours:
            return [Rung.NOTE]
        sharpest = self.action if self.mode == Mode.ACT else min(self.action, Rung.DUMP, key=ACTIONS.index)
        if sharpest == Rung.HALT and halting:
            sharpest = Rung.DUMP
        return [r for r in ACTIONS[: ACTIONS.index(sharpest)] if r != Rung.HALT] + [sharpest]


@dataclass
class Episode:
    """One limit of one run: from crossed until well below."""

    since: float | None = None
    fired_at: float | None = None
    last_resort: bool = False
    innocent: bool = False  # others filled it when it fired: looked at again after a while

    def look(self, value: float, limit: float, over_s: float, now: float) -> bool:
        """True when something is to be done now: once an episode. `now`: monotonic seconds."""
        if value <= limit:
            self.since = None
            if self.fired_at is not None and value < limit * REARM and now - self.fired_at >= REARM_S:
                self.fired_at, self.last_resort = None, False
            return False
        self.since = now if self.since is None else self.since
        if self.fired_at is not None and self.innocent and now - self.fired_at >= LOOK_AGAIN_S:
            self.fired_at = None
        if self.fired_at is not None or now - self.since < over_s:
            return False
        self.fired_at, self.innocent = now, False
        return True

    def over_s(self, now: float) -> float:
        return 0.0 if self.since is None else now - self.since


@dataclass(frozen=True)
class Culprit:
    """The process that is named: the largest of the run, or the rank that leases the card."""

    rank: int | None
    pid: int | None
    mib: float | None = None  # None: what it alone holds cannot be told


def gpu_words(
    uuid: str, used_mib: float, total_mib: float | None, limit_mib: float, over_s: float, who: Culprit, others: str
) -> str:
    """`rank 3, GPU-...: 131 GiB of 141 GiB are used for 2 s (limit 127 GiB), 130 GiB by pid 4242`."""
    total = "" if total_mib is None else f" of {size(total_mib)}"
    place = uuid if who.rank is None else f"rank {who.rank}, {uuid}"
    words = f"{place}: {size(used_mib)}{total} are used for {over_s:.0f} s (limit {size(limit_mib)})"
    if who.pid is not None and who.mib is not None:
        words += f", {size(who.mib)} by pid {who.pid}"
    return words + (f"; {others}" if others else "")


def host_words(where: str, used: int, total: int, fraction: float, over_s: float, who: Culprit, share: str) -> str:
    """`rank 0: pid 4242 holds 40 GiB; 61 GiB of 64 GiB of memory are used (96%, limit 95%) for 5 s in <cgroup>`."""
    name = "" if who.pid is None else f"pid {who.pid} holds {size(who.mib or 0.0)}; "
    rank = "" if who.rank is None else f"rank {who.rank}: "
    words = (
        f"{rank}{name}{size(used / MIB)} of {size(total / MIB)} of memory are used "
        f"({used / total:.0%}, limit {fraction:.0%}) for {over_s:.0f} s in {where}"
    )
    return words + (f"; {share}" if share else "")


def size(mib: float) -> str:
    value = mib / MIB_A_GIB
    if value < 1:
        return f"{mib:.0f} MiB"
    return f"{value:.0f} GiB" if value >= 100 else f"{value:.1f} GiB"


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mode(value: Any, default: Mode) -> Mode:
    return Mode(value) if value in list(Mode) else default


def _number(value: Any, above: float, upto: float, default: Any) -> Any:
    good = isinstance(value, int | float) and not isinstance(value, bool) and above < value <= upto
    return float(value) if good else default
