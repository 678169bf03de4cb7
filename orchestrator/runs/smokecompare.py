"""A smoke run beside a baseline: did it become slower, or does it learn less well? Pure: documents in, `Compared` out.

What cannot be compared is refused by name (another job, another GPU, another number of ranks, fewer rows); versions and
commits that differ are told. The statistics are `orchestrator.runs.throughput`'s. Called by `orch smoke`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.baseline import Subject, refuse_others
from orchestrator.runs.render import figure, one_line
from orchestrator.runs.throughput import MIN_RUNS, Shift, shift
from workloads.contract.errors import ConflictError

TOLERANCE, TOLERANCE_FEW = 0.02, 0.05
"""What a drop must exceed when nobody says it: with three runs or more, and with fewer, which do not tell how much runs
differ."""
LOSS_TOLERANCE = 0.02


@dataclass(frozen=True)
class Compared:
    """A new run beside a baseline. `loss`: (the baseline's, the new one's), where both ended at the same step."""

    against: str
    shift: Shift
    tolerance: float
    was_tps: float
    now_tps: float
    loss: tuple[float, float] | None
    notes: tuple[str, ...]

    @property
    def slower(self) -> bool:
        return self.shift.is_drop(self.tolerance)

    @property
    def worse(self) -> bool:
        """The loss over the last rows is above the baseline's by more than 2 %."""
        return self.loss is not None and not self.loss[1] <= self.loss[0] + LOSS_TOLERANCE * abs(self.loss[0])

    @property
    def good(self) -> bool:
        return not self.slower and not self.worse

    @property
    def visible(self) -> float | None:
        """The smallest drop that these rows can show with 99 %, as a share; None: they bound nothing."""
        if self.shift.high is None:
            return None
        blocks = self.shift.high - self.shift.change
        return max(blocks, -self.shift.bound) if self.shift.bound is not None else blocks

    def as_json(self) -> dict[str, Any]:
        s = self.shift
        return {
            "against": self.against, "runs": s.runs, "tolerance_percent": 100 * self.tolerance, "good": self.good,
            "slower": self.slower, "surely_slower": s.is_sure, "change_percent": _percent(s.change),
            "low_percent": _percent(s.low), "high_percent": _percent(s.high), "bound_percent": _percent(s.bound),
            "visible_percent": _percent(self.visible), "was_toks_per_s": self.was_tps, "now_toks_per_s": self.now_tps,
            "loss": None if self.loss is None else {"was": self.loss[0], "now": self.loss[1], "worse": self.worse},
            "notes": list(self.notes),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For a person; the verdict last."""
        runs = f"{self.shift.runs} run{'s' * (self.shift.runs > 1)}"
        told = [f"against {one_line(self.against)} ({runs})"]
        told += [f"  {one_line(note)}" for note in self.notes]
        told.append(f"  tokens/s  {figure(self.was_tps)} then, {figure(self.now_tps)} now: {self._moved()}")
        if self.loss is not None:
            told.append(f"  loss      {self.loss[0]:.4g} then, {self.loss[1]:.4g} now, over the last rows")
        return [*told, self._verdict()]

    def _moved(self) -> str:
        s = self.shift
        bounds = "" if s.low is None or s.high is None else f" (99 %: {100 * s.low:+.2f} to {100 * s.high:+.2f} %)"
        among = "" if s.bound is None else f"; one run in a hundred is below {100 * s.bound:+.2f} %"
        return f"{100 * s.change:+.2f} %{bounds}{among}"

    def _verdict(self) -> str:
        limit = f"{100 * self.tolerance:g} %"
        if self.slower or self.worse:
            words = [f"slower by {-100 * self.shift.change:.2f} %, more than {limit}"] if self.slower else []
            words += ["the loss is higher by more than 2 %"] if self.worse else []
            return f"regression: {'; '.join(words)}"
        if self.shift.is_sure:
            return f"clean: slower by {-100 * self.shift.change:.2f} %, within {limit}"
        seen = self.visible
        if seen is None or seen > self.tolerance:
            least = "none at all" if seen is None else f"none below {100 * seen:.1f} %"
            return f"clean, as far as can be seen: these rows are too unsteady to show a drop of {limit} ({least})"
        return f"clean: no drop of more than {limit}"


def compare(
    there: Mapping[str, Any], subject: Subject, run: Mapping[str, Any], tolerance: float | None, against: str
) -> Compared:
    """`run` (as `entry`) held against the baseline `there`. ConflictError when the two cannot be compared."""
    refuse_others(there, subject, against, "--compare-baseline")
    old = [r for r in there["runs"] if r.get("run") is None or r.get("run") != run.get("run")]
    if not old:
        raise ConflictError(
            "E-SMOKE-003", "the baseline is of this very run: it says nothing about it", where=against,
            fix="orch smoke JOB --compare-baseline FILE   (a new run)",
        )  # fmt: skip
    most = max(r["rows"] for r in old)
    if run["rows"] < most:
        raise ConflictError(
            "E-SMOKE-004", "the run has fewer rows than the baseline's: it is not compared", where=against,
            value=run["rows"], expected=f"{most} rows or more", fix=f"--steps {most}",
        )  # fmt: skip
    found = shift([r["blocks"] for r in old], run["blocks"])
    limit = tolerance if tolerance is not None else TOLERANCE if len(old) >= MIN_RUNS else TOLERANCE_FEW
    was = statistics.median(r["toks_per_s"] for r in old)
    return Compared(against, found, limit, was, run["toks_per_s"], _losses(old, run), tuple(_notes(old, run, subject)))


def _losses(old: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> tuple[float, float] | None:
    was = [r["loss_last"] for r in old if r.get("last_step") == run["last_step"] and _is_loss(r.get("loss_last"))]
    now = run["loss_last"]
    return (statistics.median(was), now) if was and run["last_step"] is not None and _is_loss(now) else None


def _is_loss(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e18


def _notes(old: Sequence[Mapping[str, Any]], run: Mapping[str, Any], subject: Subject) -> list[str]:
    told = [] if subject.job else ["plain files: that job and machine are the same is yours to know"]
    if subject.machine.get("device") == "cuda" and subject.machine.get("gpu") is None:
        told.append("which model of GPU it was is not known: that it is the same is yours to know")
    if len(old) < MIN_RUNS:
        told.append(f"with fewer than {MIN_RUNS} runs in a baseline nobody knows how much runs differ: save more")
    newest = old[-1]
    told += [f"{k}: {newest[k]} then, {run[k]} now" for k in ("commit", "pod") if _differs(newest, run, k)]
    then, now = newest.get("versions"), run.get("versions")
    if isinstance(then, dict) and isinstance(now, dict):
        told += [f"{k}: {then[k]} then, {now[k]} now" for k in sorted(then.keys() & now.keys()) if then[k] != now[k]]
    return told


def _differs(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    return a.get(key) is not None and b.get(key) is not None and a[key] != b[key]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 3)
