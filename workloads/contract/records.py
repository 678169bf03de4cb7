"""Records that cross a process boundary, as frozen standard-library dataclasses.

Writers use `as_wire` (None is left out: never null). Readers use `from_wire`, which ignores keys it does not know and
checks no types; what shows files that somebody else may have written goes through `orchestrator.runs.reading`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

V = 1
T = TypeVar("T")
PYTHON_GONE = "its Python is gone"
"""begins the reason of a run that failed because its environment was deleted; the path follows"""
NO_SUPERVISOR = "no supervisor can be started for it"
"""begins the reason of a run that was given up because of that; what is missing follows"""
REWIND = "rewind:"
"""begins the key of a note: a resume went back to an older checkpoint, and gave up the steps behind it"""


def as_wire(record: Any) -> dict[str, Any]:
    """A record as a JSON object; fields that are None are left out, at every depth."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if v is not None}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return value

    cleaned: dict[str, Any] = clean(dataclasses.asdict(record))
    return cleaned


def from_wire(cls: type[T], row: dict[str, Any]) -> T:
    """A record from a JSON object. TypeError when a required key is missing; unknown keys are ignored.

    Types are not checked: for files that orch itself wrote. Nested records are built one level deep by their owners.
    """
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: v for k, v in row.items() if k in names})


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`: who did what, and why."""

    seq: int
    ts: float
    attempt: int
    who: str  # supervisor, keeper, operator, agent:<pod>
    what: str  # state, stage, rank-exit, halt, verdict, note, health, health-clear, dump, stop, guard
    why: str = ""
    frm: str | None = None  # on the wire: "from"
    to: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    v: int = V

    def wire(self) -> dict[str, Any]:
        row = as_wire(self)
        if "frm" in row:
            row["from"] = row.pop("frm")
        return row


@dataclass(frozen=True)
class HaltClocks:
    """Seconds after `.HALT` was seen at which a rank gets SIGTERM and SIGKILL."""

    term_s: float = 600.0
    kill_s: float = 630.0
    now_term_s: float = 10.0
    now_kill_s: float = 30.0


@dataclass(frozen=True)
class ShimOrder:
    """`ranks/a<attempt>/rank<k>.order.json`, mode 0600: everything a shim needs to start one rank."""

    run: str
    run_dir: str
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    pod: str
    argv: list[str]
    cwd: str
    env: dict[str, str]  # the rank's whole environment
    devices: list[str] = field(default_factory=list)  # GPU UUIDs to lease
    halt: dict[str, float] = field(default_factory=dict)  # HaltClocks
    oom_score_adj: int = 500
    log_max_bytes: int = 10_000_000_000
    v: int = V


@dataclass(frozen=True)
class RankRecord:
    """`ranks/a<attempt>/rank<k>.json`: the shim's record of its rank. Rewritten once, when the rank has ended."""

    run: str
    attempt: int
    rank: int
    pod: str
    shim_pid: int
    shim_start_time: int
    boot_id: str
    command: list[str]
    ts: float  # Unix seconds of the start
    pid: int | None = None  # None: it was never started (see `error`)
    start_time: int | None = None
    ended: float | None = None  # Unix seconds; None while it lives
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None  # it could not be started, or its shim was lost: why
    cause: str | None = None  # exited, signalled, spawn-failed, lease-busy, shim-lost, halt-term, halt-kill, stopped
    oom: bool = False
    max_rss_mib: float | None = None
    swept: list[int] = field(default_factory=list)  # descendants killed after it
    stayed: list[int] = field(default_factory=list)  # descendants that could not be killed
    v: int = V


@dataclass(frozen=True)
class Status:
    """`status.json`, written by the supervisor alone."""

    run: str
    name: str
    state: str
    reason: str
    attempt: int
    since: float  # Unix seconds of the last change of state
    ts: float  # Unix seconds of this write
    pods: list[str]
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    toks_per_s: float | None = None
    exit_codes: dict[str, int] = field(default_factory=dict)  # rank -> exit code; a signal as its negative
    restarts: int = 0
    behind: list[str] = field(default_factory=list)  # runs that a queued run waits for
    supervisor: dict[str, Any] | None = None  # pid, start_time, boot_id
    findings: int | None = None  # of health, open now; the newest one is the reason. None: there are none
    v: int = V


@dataclass(frozen=True)
class RunVerdict:
    """`verdict.json`: the answer of a run that asks a question (kind `parity`). Written by rank 0, last of all."""

    run: str
    attempt: int
    verdict: str  # go, no-go
    why: str  # 2 of 112 cells
    ts: float
    data: dict[str, Any] = field(default_factory=dict)  # cells, wrong, suites, full, code, environment, ...
    v: int = V


@dataclass(frozen=True)
class Request:
    """`requests/<utc>-<verb>-<id>.json`."""

    verb: str  # halt, dump, resume
    who: str
    ts: float
    why: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    v: int = V


@dataclass(frozen=True)
class Ack:
    """`requests/<utc>-<verb>-<id>.ack.json`."""

    ok: bool
    who: str
    ts: float
    why: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    v: int = V


@dataclass(frozen=True)
class HaltAck:
    """`halt_ack_rank<k>.json`: where this rank stopped and what it left."""

    run: str
    rank: int
    attempt: int
    step: int
    ts: float
    checkpoint: str | None = None  # directory name below checkpoints/
    hash: str | None = None  # sha256 of its manifest
    v: int = V
