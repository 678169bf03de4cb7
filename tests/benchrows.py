"""Figures as `runbooks.evidence` wants them: a table for a person, and a JSON line a case with where it comes from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    case: str
    value: float
    unit: str
    limit: float | None

    @property
    def verdict(self) -> str:
        return "-" if self.limit is None else "ok" if self.value <= self.limit else "OVER"


def where_and_when(command: str) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Linux {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("typer", "paramiko", "fabric")},
        "commit": commit.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": command,
    }


def line_of(row: Row, suite: str, facts: dict[str, object]) -> str:
    goal = "" if row.limit is None else f"<= {row.limit:g} {row.unit}"
    value = float(f"{row.value:.3g}")
    figures = {"case": row.case, "value": value, "unit": row.unit, "goal": goal, "verdict": row.verdict}
    return json.dumps({"v": 1, "suite": suite, **figures, **facts})


def report(rows: Sequence[Row], suite: str, command: str, save: Path | None) -> int:
    """Print the table and the lines, append the lines to `save`; 1 when a limit is exceeded, else 0."""
    print(f"{'case':<44} {'measured':>8} {'':<8} {'goal':<10}")
    for r in rows:
        limit = "-" if r.limit is None else f"{r.limit:g} {r.unit}"
        print(f"{r.case:<44} {r.value:>8.3g} {r.unit:<8} {limit:<10} {r.verdict}")
    facts = where_and_when(command)
    lines = [line_of(r, suite, facts) for r in rows]
    print("\n".join(lines))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        with save.open("a") as f:
            f.writelines(f"{line}\n" for line in lines)
    return int(any(r.verdict == "OVER" for r in rows))
