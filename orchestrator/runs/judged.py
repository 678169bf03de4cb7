"""What the readers of kinds `parity` and `bench` share: rows a case, and a verdict that must be that of its rows.

Rows and verdict come from a pod: only what has the right type is used, and a `go` beside a wrong or missing row is
none. Pure but for reading two files. Called by `orchestrator.runs.parity` and `orchestrator.runs.bench`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs.reading import record_of
from orchestrator.runs.render import one_line
from orchestrator.runs.views import RunView
from workloads.contract.errors import IntegrityError
from workloads.contract.files import read_bytes_bounded, try_read_json
from workloads.contract.records import RunVerdict
from workloads.contract.states import RunState

GO, NO_GO = "go", "no-go"
GOOD = "ok"
MAX_ROWS_BYTES = 256 << 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A run of rows, and its verdict (None: it has not answered). `pod`: where it was judged."""

    view: RunView
    rows: tuple[Row, ...]
    verdict: RunVerdict | None
    pod: str

    @property
    def wrong(self) -> list[Row]:
        return [r for r in self.rows if not is_good(r)]

    @property
    def data(self) -> Mapping[str, Any]:
        return self.verdict.data if self.verdict else {}

    @property
    def environment(self) -> dict[str, str]:
        told = self.data.get("environment")
        return {str(k): str(v) for k, v in told.items()} if isinstance(told, dict) else {}

    def document(self, counted: str, asked: Sequence[str], **more: object) -> dict[str, Any]:
        """For `--json`, every key always present. counted: what a row is called; asked: keys of what was asked for."""
        d, verdict = self.data, self.verdict
        return {
            **document_head(self.view, self.pod),
            "verdict": verdict.verdict if verdict else None,
            "why": verdict.why if verdict else None,
            counted: len(self.rows),
            "wrong": len(self.wrong),
            **{key: d.get(key) for key in asked},
            "environment": self.environment,
            **{key: d.get(key) for key in ("commit", "dirty", "command")},
            **more,
            "dir": str(self.view.run.path),
            "rows": [dict(r) for r in ordered(self.rows)],
        }


def is_good(row: Mapping[str, Any]) -> bool:
    return row.get("verdict") == GOOD


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Wrong ones first, else as they were judged."""
    return sorted(rows, key=is_good)


def read_rows(path: Path) -> tuple[Row, ...]:
    """Whole rows, the newest of each case, in the order in which they were judged; none where there is no file."""
    try:
        data = read_bytes_bounded(path, MAX_ROWS_BYTES)
    except (OSError, ValueError):
        return ()
    return rows_in(data)


def rows_in(data: bytes) -> tuple[Row, ...]:
    """As `read_rows`, of the content of a file: what is no row is passed over, and so is a number that is none."""
    found: dict[tuple[str, str], Row] = {}
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("suite"), str) and isinstance(row.get("case"), str):
            found[(row["suite"], row["case"])] = {k: v for k, v in row.items() if not _is_no_number(v)}
    return tuple(found.values())


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def document_head(view: RunView, pod: str) -> dict[str, Any]:
    """What the `--json` document of a run that was asked something begins with."""
    return {"v": 1, "run": view.run.run_id, "pod": pod, "state": view.state, "reason": view.reason}


def wrong_so_far(path: Path) -> int:
    return sum(not is_good(row) for row in read_rows(path))


def verdict_of(view: RunView, rows: Sequence[Row], path: Path, *, counted: str, code: str) -> RunVerdict | None:
    """What `view` has answered about the rows in `path`; None: it has not. IntegrityError `code` when it contradicts
    them. `counted`: what the kind calls its rows."""
    row = try_read_json(view.run.verdict)
    verdict = record_of(RunVerdict, row) if row is not None else None
    if verdict is None or not view.ended or verdict.attempt != view.attempt:
        return None
    ended = {GO: RunState.SUCCEEDED, NO_GO: RunState.FAILED}.get(verdict.verdict)
    told, wrong = (verdict.data.get(counted), verdict.data.get("wrong")), sum(not is_good(r) for r in rows)
    if view.state != ended or told != (len(rows), wrong) or (verdict.verdict == GO) == bool(wrong):
        raise IntegrityError(
            code, f"the verdict of run {view.run.run_id} is not that of its rows",
            where=str(view.run.verdict),
            value=f"{verdict.verdict}: {one_line(verdict.why, 80)}; {view.state}",
            expected=f"{wrong} wrong of the {len(rows)} {counted} in {path.name}",
            fix=f"orch resume {view.run.run_id}   ({counted} that have a row are not judged again)",
        )  # fmt: skip
    return verdict


def number(value: object, digits: int = 4) -> str:
    """A figure of a row, `-` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{value:.{digits}g}"
