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
from workloads.contract.states import ENDED

MAX_RANKS = 4096
WORK_S = 5.0
HANGS_S = 60.0  # a look that starts Ray may take some 40 s


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
        "asleep": asleep(home, run, status, now),
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


def asleep(home: OrchHome, run: RunDir, status: Mapping[str, Any] | None, now: float) -> str | None:
    """What the keeper is doing for a run without a supervisor: until the first status anything, later its troubles.
    None where there is nothing to say."""
    if not status:
        return keeper_words(home, run, now)
    if status.get("state") in tuple(ENDED) or lives(status.get("supervisor")):
        return None
    return None if running(home) is None else _wrong(run, _work(home), now)


def keeper_words(home: OrchHome, run: RunDir, now: float) -> str:
    """What the keeper is doing for a run that has no supervisor yet, and what went wrong with it."""
    if running(home) is None:
        return "no keeper runs on this machine"
    work = _work(home)
    if wrong := _wrong(run, work, now):
        return wrong
    sent = try_read_json(run.submissions) or {}
    if isinstance(sent.get("ts"), int | float):
        return f"the keeper submitted it {max(now - sent['ts'], 0):.0f} s ago"
    ray = work.get("ray") or {}
    cluster = (try_read_json(run.run_json) or {}).get("cluster")
    if ray.get("state") in ("starting", "up") and ray.get("cluster") != cluster:
        return "Ray serves runs of other pods or of another Ray version; it is started for this one when they end"
    return "the keeper is starting Ray for it"


def _work(home: OrchHome) -> Mapping[str, Any]:
    try:
        return KeeperClient(home).work(WORK_S)
    except OrchError:
        return {}  # it has just started, or is busy


def _wrong(run: RunDir, work: Mapping[str, Any], now: float) -> str | None:
    """What keeps the keeper from having a supervisor for this run."""
    ray, troubles, age_s = work.get("ray") or {}, work.get("troubles") or {}, work.get("look_age_s")
    if trouble := troubles.get(run.run_id) or troubles.get(""):
        age_s = max(now - float(trouble.get("since", now)), 0)
        return f"the keeper's trouble with it for {age_s:.0f} s: {escape(trouble.get('what', ''), 400)}"
    if ray.get("state") == "failed":
        return f"Ray does not start: {escape(ray.get('error', ''), 400)}; the keeper tries again"
    if isinstance(age_s, int | float) and age_s > HANGS_S:
        return f"the keeper has not come to an end with its look at the runs for {age_s:.0f} s"
    sent = try_read_json(run.submissions) or {}
    if sent.get("error"):
        return f"submission {sent.get('n')} failed: {escape(sent['error'], 400)}; the keeper tries again"
    return None
