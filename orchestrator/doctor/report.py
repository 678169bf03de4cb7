"""Findings as lines and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.doctor.checks import Check
from workloads.contract.errors import escape


def lines(checks: Sequence[Check]) -> list[str]:
    width = max(len(c.name) for c in checks)
    told = []
    for c in checks:
        told.append(f"{c.level:<4}  {c.name:<{width}}  {escape(c.what, 400)}")
        if c.fix and c.level != "ok":
            told.append(f"      {'':<{width}}  fix: {escape(c.fix, 400)}")
    bad = {level: sum(c.level == level for c in checks) for level in ("warn", "fail")}
    return [*told, "", f"{len(checks)} checks, {bad['warn']} warnings, {bad['fail']} failures"]


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    rows = [{"name": c.name, "level": c.level, "what": c.what, "fix": c.fix} for c in checks]
    return {"v": 1, "ok": all(c.level != "fail" for c in checks), "checks": rows}
