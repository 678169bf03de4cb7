"""From which length which backend wins, out of the rows of this run: in words, and as thresholds that kernels obey.

`thresholds.json` in the run directory holds what was found; only a job with `write_thresholds` installs it, in the
home of the pod, where every process of this machine looks for it. Called by `workloads.bench.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels import thresholds
from kernels.bench import knee
from workloads.judging.book import Row


@dataclass(frozen=True)
class Knees:
    """`words`: "" where no peer was timed. `found`: for this GPU model; None where no backend can be chosen."""

    words: str
    found: thresholds.Thresholds | None


def knees_of(rows: Sequence[Row], source: str, device: str) -> Knees:
    """`source`: what the rows are called; `device`: cuda or cpu, whose times no dispatch is to obey."""
    known = knee.knees(rows)
    if not known or device != "cuda":
        return Knees("", None)
    made = knee.documents(rows, source)
    return Knees(knee.table(known), made[0] if made else None)


def install(found: thresholds.Thresholds, home: Path) -> Path:
    """Where it lies now. OSError when it cannot be written."""
    return thresholds.install(found, home / "thresholds")
