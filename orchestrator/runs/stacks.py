"""A dump's answer as text: where every rank is in one sentence, then each different stack once, the odd one first.

Pure. Called by `orch dump`.
"""

from __future__ import annotations

from typing import Any

from orchestrator.runs.render import harmless, one_line
from workloads.contract.rundir import RunDir

MAX_SUMMARY_CHARS = 2000
MAX_NOTE_CHARS = 600


def dump_lines(run: RunDir, data: dict[str, Any]) -> list[str]:
    """Lines from `{"summary","groups":[{"ranks","where","text"}],"files","notes"}`; odd shapes are passed over."""
    lines: list[str] = []
    summary = data.get("summary")
    if isinstance(summary, str) and summary:
        seconds = data.get("seconds")
        took = f"   ({seconds:.1f} s)" if isinstance(seconds, int | float) else ""
        lines += [f"{one_line(summary, MAX_SUMMARY_CHARS)}{took}", ""]
    for group in _list(data.get("groups")):
        if isinstance(group, dict):
            ranks = ", ".join(str(k) for k in _list(group.get("ranks")))
            where = one_line(str(group.get("where") or ""))
            lines += [f"=== rank {ranks}" + (f": {where}" if where else "")]
            lines += [*harmless(str(group.get("text", ""))).rstrip("\n").split("\n"), ""]
    lines += [f"note: {one_line(str(n), MAX_NOTE_CHARS)}" for n in _list(data.get("notes"))]
    files = [one_line(str(f)) for f in _list(data.get("files"))]
    if files:
        lines += ["files:", *(f"  {f if f.startswith('/') else run.stackdumps / f}" for f in files)]
    return lines or ["no rank had a stack to show"]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
