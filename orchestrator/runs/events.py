"""The newest events of a run. Lines that are none (torn, foreign, hostile) are skipped; nothing is written.

Used by the one-screen report and while waiting for a run.
"""

from __future__ import annotations

import json

from orchestrator.runs.reading import record_of
from workloads.contract.files import read_tail
from workloads.contract.records import Event
from workloads.contract.rundir import RunDir

EVENTS_TAIL_BYTES = 256 << 10


def read_events(run: RunDir, limit_bytes: int = EVENTS_TAIL_BYTES) -> list[Event]:
    """The newest events, oldest first; lines that are none are skipped."""
    try:
        data = read_tail(run.events, limit_bytes)
    except OSError:
        return []
    lines = data.split(b"\n")
    if len(data) == limit_bytes:
        lines = lines[1:]  # the first one is cut
    return [e for e in map(parse_event, lines) if e is not None]


def parse_event(line: bytes) -> Event | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    row["frm"] = row.pop("from", None)
    return record_of(Event, row)
