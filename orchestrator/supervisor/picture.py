"""What readers are shown: status.json as a picture of memory and observation, and the facts of how a rank ended.

Pure, but for `last_lines`, which reads the end of one log. Called by `engine`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.observe import Figures
from orchestrator.supervisor.seen import RankSeen
from orchestrator.supervisor.spec import RunSpec
from workloads.contract.errors import escape
from workloads.contract.files import read_tail
from workloads.contract.process import ProcId
from workloads.contract.records import RankRecord, Status
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

LAST_LINES = 30
MAX_LINE_CHARS = 300
WATCHED = frozenset({RunState.STARTING, RunState.RUNNING})
"""States in which the rules of health are looked at."""


def picture(
    spec: RunSpec,
    memory: Memory,
    ranks: Sequence[RankSeen],
    figures: Figures,
    *,
    reason: str,
    behind: Sequence[str],
    ts: float,
    me: ProcId,
) -> Status:
    """`ts`: Unix seconds of this look; `me`: the supervisor's process."""
    assert memory.state is not None
    return Status(
        run=spec.run_id,
        name=spec.name,
        state=memory.state.value,
        reason=reason,
        attempt=memory.attempt,
        since=memory.since,
        ts=ts,
        pods=[p.name for p in spec.pods],
        step=figures.step,
        steps=figures.steps if figures.steps is not None else spec.steps,
        loss=_finite(figures.loss),
        toks_per_s=_finite(figures.toks_per_s),
        exit_codes=_exit_codes(ranks),
        restarts=memory.restarts,
        behind=list(behind),
        findings=len(memory.health.open) or None if memory.state in WATCHED else None,
        supervisor={"pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id},
    )


def reason_of(memory: Memory) -> str:
    """Why it is in its state; while it starts or runs, what is wrong with it, newest first."""
    ill = memory.health.newest
    if ill is None or memory.state not in WATCHED:
        return memory.reason
    more = len(memory.health.open) - 1
    others = f" (and {more} more {'findings' if more > 1 else 'finding'})" if more else ""
    return f"{ill.why} (open since {time.strftime('%H:%M:%SZ', time.gmtime(ill.ts))}){others}"


def failed_at(memory: Memory) -> dict[str, Any]:
    """Of an attempt that fails: the rank to look at, and the event with the last lines of its log."""
    ending = memory.health.ending
    if memory.closed:
        return {}
    if ending is not None:
        return {"rule": ending.rule.value} | ({} if ending.rank is None else {"rank": ending.rank})
    return {} if memory.fallen is None else {"rank": memory.fallen, "rank_exit": memory.fallen_seq}


def exit_facts(record: RankRecord) -> dict[str, Any]:
    """How a rank ended, for an event; what is unknown is left out."""
    facts = {
        "exit_code": record.exit_code,
        "signal": record.signal,
        "cause": record.cause,
        "pod": record.pod,
        "oom": record.oom or None,
        "max_rss_mib": record.max_rss_mib,
    }
    return {k: v for k, v in facts.items() if v is not None}


def _finite(value: float | None) -> float | None:
    """JSON has no NaN; a figure that is none is left out here (the heartbeat has it)."""
    return value if value is not None and abs(value) < 1e300 else None


def _exit_codes(ranks: Sequence[RankSeen]) -> dict[str, int]:
    codes = {}
    for seen in ranks:
        record = seen.finished
        if record is not None and record.signal is not None:
            codes[str(seen.rank)] = -record.signal
        elif record is not None and record.exit_code is not None:
            codes[str(seen.rank)] = record.exit_code
    return codes


def last_lines(run: RunDir, rank: int) -> list[str]:
    """The end of a rank's log: at most 30 lines of 300 characters, harmless to print."""
    try:
        raw = read_tail(run.rank_log(rank), 32 << 10)
    except OSError:
        return []
    return [escape(line, MAX_LINE_CHARS) for line in raw.decode(errors="replace").splitlines()[-LAST_LINES:]]
