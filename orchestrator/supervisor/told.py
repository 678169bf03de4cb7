"""What the watchdog tells: findings, dumps, and the lines that guard and ranks leave in the run directory.

Here is what events hold (`illness` reads it back). What others wrote is bounded and not trusted: a line may be
anything. Nothing is written here. Called by `watchdog`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.supervisor.actions import Found
from orchestrator.supervisor.illness import DumpDue, Ill
from orchestrator.supervisor.seen import Line
from workloads.contract.errors import escape
from workloads.contract.files import try_read_json
from workloads.contract.records import Ack, from_wire
from workloads.contract.rundir import RunDir
from workloads.contract.trouble import read_troubles

MAX_READ_BYTES = 64 << 10
MAX_LINES = 50
MAX_WHY_CHARS = 400
MAX_FILES = 1024
_TEXTS = ("rule", "did", "pod", "device")
_NUMBERS = ("rank", "pid", "used_mib", "total_mib", "limit_mib")


def found_data(found: Found) -> dict[str, object]:
    """The fields of the event `health`; None is left out by whoever writes it."""
    f, at = found.act.finding, found.at
    return {
        "rule": f.rule.value, "rung": found.act.rung.value, "rank": f.rank, "pod": f.pod, "tag": f.tag or None,
        "others": list(f.others) or None, "value": _number(f.value), "limit": _number(f.limit),
        "unit": f.unit or None, "since_s": round(f.since_s, 1), "level": f.level,
        "suppressed": found.act.suppressed or None,
        "at": None if at is None else {k: v for k, v in dataclasses.asdict(at).items() if v is not None},
    }  # fmt: skip


def place_of(ill: Ill) -> dict[str, object]:
    return {"rule": ill.rule.value, "rank": ill.rank, "pod": ill.pod, "tag": ill.tag or None}


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN; a figure that is none is told as its name."""
    return value if value is None or abs(value) < 1e300 else str(value)


def new_lines(run: RunDir, upto: Mapping[str, int]) -> tuple[tuple[Line, ...], dict[str, int]]:
    """What came since it was told last, and how far that is. `upto`: bytes of each file that were told."""
    guard, guard_upto = _guard(run, upto.get("guard", 0))
    troubles, trouble_upto = _troubles(run, upto.get("trouble", 0))
    return (*guard, *troubles), {"guard": guard_upto, "trouble": trouble_upto}


def _guard(run: RunDir, offset: int) -> tuple[list[Line], int]:
    data, end = _read(run.guard_log, offset)
    found: list[Line] = []
    for raw in data[: data.rfind(b"\n") + 1].splitlines(keepends=True)[:MAX_LINES]:
        end += len(raw)
        row = _object(raw)
        if row is not None:
            found.append(Line("guard", escape(str(row.get("why", "")), MAX_WHY_CHARS), {**_known(row), "upto": end}))
    return found, end


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a guard's line that are what they should be."""
    texts = {k: escape(row[k], 80) for k in _TEXTS if isinstance(row.get(k), str)}
    numbers = {k: row[k] for k in _NUMBERS if type(row.get(k)) in (int, float) and abs(row[k]) < 1e15}
    return texts | numbers


def _troubles(run: RunDir, offset: int) -> tuple[list[Line], int]:
    troubles, end = read_troubles(run, offset)
    rows = [
        Line("note", escape(t.sentence(), MAX_WHY_CHARS), {"trouble": t.what.value, "checkpoint": escape(t.checkpoint)})
        for t in troubles[-MAX_LINES:]
    ]
    return [Line(row.what, row.why, {**row.data, "upto": end}) for row in rows], end


def _read(path: Path, offset: int) -> tuple[bytes, int]:
    """(bytes, where they begin); a file that is shorter than it was is read from its beginning."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b"", offset
    try:
        start = offset if offset <= os.fstat(fd).st_size else 0
        return os.pread(fd, MAX_READ_BYTES, start), start
    except OSError:
        return b"", offset
    finally:
        os.close(fd)


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# dumps


def ack_of(request: Path) -> Ack | None:
    """The keeper's answer, if there is one."""
    row = try_read_json(RunDir.ack_of(request))
    if row is None or not isinstance(row.get("ok"), bool) or not isinstance(row.get("ts"), int | float):
        return None
    try:
        ack = from_wire(Ack, row)
    except TypeError:
        return None
    return ack if isinstance(ack.why, str) and isinstance(ack.data, dict) else None


def dump_data(due: DumpDue, ack: Ack | None) -> tuple[str, dict[str, object]]:
    """The sentence and the fields of the event `dump`."""
    asked: dict[str, object] = {"by": "watchdog", "request": due.name}
    if ack is None:
        return f"no stacks: the keeper did not answer ({due.why})", asked | {"ok": False}
    if not ack.ok:
        return f"no stacks: {escape(ack.why, MAX_WHY_CHARS) or 'no rank could be dumped'}", asked | {"ok": False}
    groups = [_group(g) for g in _list(ack.data.get("groups")) if isinstance(g, dict)]
    files = [escape(str(f), 200) for f in _list(ack.data.get("files"))[:MAX_FILES]]
    summary = escape(str(ack.data.get("summary") or _summary(groups)), MAX_WHY_CHARS)
    took, after_s = ack.data.get("seconds"), round(max(ack.ts - due.ts, 0.0), 3)
    seconds = took if isinstance(took, int | float) and 0 <= took < 1e6 else after_s
    data = {"seconds": seconds, "after_s": after_s, "summary": summary, "files": files, "groups": groups}
    return summary, asked | data


def _group(row: Mapping[str, Any]) -> dict[str, object]:
    where = row.get("where")
    ranks = [r for r in _list(row.get("ranks")) if type(r) is int]
    return {"ranks": ranks, "where": escape(where, 200) if isinstance(where, str) else ""}


def _summary(groups: list[dict[str, object]]) -> str:
    return f"stacks of all ranks, {len(groups)} different"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
