"""A dump's answer as text: ranks with the same stack shown once. Pure. Called by `orch dump`."""

from __future__ import annotations

from typing import Any

from orchestrator.runs.render import harmless, one_line
from workloads.contract.rundir import RunDir


def dump_lines(run: RunDir, data: dict[str, Any]) -> list[str]:
    """Lines from `{"groups":[{"ranks","text"}],"files":[...],"notes":[...]}`; odd shapes are passed over."""
    lines: list[str] = []
    for group in _list(data.get("groups")):
        if isinstance(group, dict):
            ranks = ", ".join(str(k) for k in _list(group.get("ranks")))
            lines += [f"=== rank {ranks}", *harmless(str(group.get("text", ""))).rstrip("\n").split("\n"), ""]
    lines += [f"note: {one_line(str(n))}" for n in _list(data.get("notes"))]
    files = [one_line(str(f)) for f in _list(data.get("files"))]
    if files:
        lines += ["files:", *(f"  {f if f.startswith('/') else run.stackdumps / f}" for f in files)]
    return lines or ["no rank had a stack to show"]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
