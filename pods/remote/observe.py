"""What only the machine of a run can say: whether its processes live, and what the keeper does for it.

Looks at /proc and asks the keeper; changes nothing. Called where the run lies: by `orchestrator.runs.views` for a run
of this machine, by `pods.remote.mirror` for one that somebody else looks at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pods.keeper.client import KeeperClient, running
from workloads.contract.errors import OrchError, escape
from workloads.contract.files import try_read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome, RunDir

MAX_RANKS = 4096


def observed(home: OrchHome, run: RunDir, now: float) -> dict[str, Any]:
    """{state, attempt, supervised, alive: {rank: bool}, frozen: [rank], asleep}; ranks known to have ended left out."""
    status = try_read_json(run.status)
    attempt = status.get("attempt") if status else newest_attempt(run)
    alive: dict[str, bool] = {}
    frozen: list[int] = []
    if type(attempt) is int and attempt > 0:
        for rank, row in _records(run, attempt):
            ident = process_of(row)
            if ident is not None:
                state = ident.state()
                alive[str(rank)] = state is not None
                if state in ("T", "t"):
                    frozen.append(rank)
    return {
        "state": str(status.get("state")) if status else None,
        "attempt": attempt,
        "supervised": lives((status or {}).get("supervisor")),
        "alive": alive,
        "frozen": frozen,
        "asleep": None if status else keeper_words(home, run, now),
    }


def newest_attempt(run: RunDir) -> int:
    """0 when no rank was ever started."""
    try:
        names = [p.name for p in run.ranks.iterdir()]
    except OSError:
        return 0
    return max((int(m[1]) for m in (re.fullmatch(r"a(\d{1,9})", n) for n in names) if m), default=0)


def _records(run: RunDir, attempt: int) -> list[tuple[int, dict[str, Any]]]:
    try:
        names = [p.name for p in run.attempt_dir(attempt).iterdir()]
    except OSError:
        return []
    ranks = sorted(int(m[1]) for m in (re.fullmatch(r"rank(\d{1,6})\.json", n) for n in names) if m)[:MAX_RANKS]
    found = ((rank, try_read_json(run.rank_record(attempt, rank))) for rank in ranks)
    return [(rank, row) for rank, row in found if row is not None and row.get("ended") is None]


def process_of(row: object) -> ProcId | None:
    """The process that a record names; None when it names none."""
    if not isinstance(row, Mapping):
        return None
    pid, start_time, boot = row.get("pid"), row.get("start_time"), row.get("boot_id")
    if type(pid) is not int or type(start_time) is not int or not isinstance(boot, str) or pid < 1:
        return None
    return ProcId(pid, start_time, boot)


def lives(row: object) -> bool:
    """Whether the very process that a record names lives on this machine."""
    ident = process_of(row)
    return ident is not None and ident.alive()


def keeper_words(home: OrchHome, run: RunDir, now: float) -> str:
    """What the keeper is doing for a run that has no supervisor yet, and what went wrong with it."""
    if running(home) is None:
        return "no keeper runs on this machine"
    try:
        ray = KeeperClient(home).ray()
    except OrchError:
        ray = {}  # it has just started, or is busy
    if ray.get("state") == "failed":
        return f"Ray does not start: {escape(ray.get('error', ''), 400)}; the keeper tries again"
    sent = try_read_json(run.submissions) or {}
    if sent.get("error"):
        return f"submission {sent.get('n')} failed: {escape(sent['error'], 400)}; the keeper tries again"
    if isinstance(sent.get("ts"), int | float):
        return f"the keeper submitted it {max(now - sent['ts'], 0):.0f} s ago"
    return "the keeper is starting Ray for it"
