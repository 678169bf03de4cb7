"""Two bench runs beside each other: which cases became slower. Pure: rows in, a comparison out.

A case is slower when its median is, by more than the tolerance, and its 10th percentile is too. Slower code moves all
of its replays, and so both; a disturbance (clocks, heat, a neighbour) moves the median alone and leaves the fast
replays where they were. A case whose median alone moved is listed as unsteady, with both spans, and is no regression:
the tolerance itself is the same for every case and never widened. Rows without percentiles are judged by the median.
In the filed rows of an H200 the 10th percentile lies within 1 % of the median, in one case of 40 3.3 % below it; the
90th within 1 % in most, 2 % above it for an empty launch, and 5 to 13 % in the five decoupled cases at 32k tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.judged import Row, is_good, number
from orchestrator.runs.render import one_line, table

FACTS = ("driver", "torch", "triton", "machine")
"""What may explain a difference without a change of the code."""
MAX_NAMED = 12


@dataclass(frozen=True)
class Change:
    suite: str
    case: str
    was_us: float
    now_us: float
    was_span: tuple[float, float] | None
    now_span: tuple[float, float] | None

    @property
    def percent(self) -> float:
        return 100 * (self.now_us / self.was_us - 1)

    @property
    def overlaps(self) -> bool:
        """Whether the spans of the two runs (10th to 90th percentile) have a time in common."""
        a, b = self.was_span, self.now_span
        return a is not None and b is not None and a[0] <= b[1] and b[0] <= a[1]

    def slower(self, tolerance: float) -> bool:
        """Median and, where both are known, 10th percentile, by more than `tolerance` (0.05: 5 %)."""
        spans = self.was_span is None or self.now_span is None or self.now_span[0] > self.was_span[0] * (1 + tolerance)
        return self.unsteady(tolerance) and spans

    def unsteady(self, tolerance: float) -> bool:
        return self.now_us > self.was_us * (1 + tolerance)

    def faster(self, tolerance: float) -> bool:
        return self.now_us * (1 + tolerance) < self.was_us

    def as_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite, "case": self.case, "was_us": self.was_us, "now_us": self.now_us,
            "percent": round(self.percent, 2), "was_span_us": self.was_span, "now_span_us": self.now_span,
            "overlap": self.overlaps,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """`same`: cases within the tolerance. `missing`: only in the old rows; `new`: only in the new ones; `untimed`: in
    both, and one of them has no time; `notes`: what else is different between the two."""

    against: str
    tolerance: float
    slower: tuple[Change, ...]
    unsteady: tuple[Change, ...]
    faster: tuple[Change, ...]
    same: int
    missing: tuple[str, ...]
    new: tuple[str, ...]
    untimed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def compared(self) -> int:
        return self.same + len(self.slower) + len(self.unsteady) + len(self.faster)

    def as_json(self) -> dict[str, Any]:
        changes = {name: [c.as_json() for c in getattr(self, name)] for name in ("slower", "unsteady", "faster")}
        names = {name: list(getattr(self, name)) for name in ("missing", "new", "untimed", "notes")}
        head = {"against": self.against, "tolerance_percent": 100 * self.tolerance, "compared": self.compared}
        return {**head, "regressions": len(self.slower), "same": self.same, **changes, **names}

    def lines(self, width: int = 0) -> list[str]:
        """For a person: the changed cases, the verdict last."""
        told = [f"against {one_line(self.against)}"]
        told += [f"  {one_line(note)}" for note in self.notes]
        if self.slower or self.unsteady or self.faster:
            told += ["", *_changes(self, width), ""]
        for word, names in (("missing here", self.missing), ("new here", self.new), ("without a time", self.untimed)):
            told += _named(word, names)
        percent = f"{100 * self.tolerance:g} %"
        if self.slower:
            share = f"{len(self.slower)} of {_cases(self.compared)}"
            return [*told, f"regression: {share} slower than before by more than {percent}"]
        more = [f"{len(xs)} {word}" for word, xs in (("unsteady", self.unsteady), ("faster", self.faster)) if xs]
        return [*told, ", ".join([f"clean: {_cases(self.compared)}, none slower by more than {percent}", *more])]


def compare(old: Sequence[Row], new: Sequence[Row], tolerance: float, against: str) -> Comparison:
    """`new` beside `old`, by suite and case. Old rows of suites that `new` has none of are left alone.

    ValueError when there is no case that both have timed: nothing was compared then, and that is not clean.
    """
    suites = {r["suite"] for r in new}
    was = {_key(r): r for r in old if r["suite"] in suites}
    now = {_key(r): r for r in new}
    both = [k for k in now if k in was]
    changes = [c for k in both if (c := _change(was[k], now[k])) is not None]
    if not changes:
        raise ValueError("no case has a time in both")
    slower = tuple(c for c in changes if c.slower(tolerance))
    unsteady = tuple(c for c in changes if c.unsteady(tolerance) and not c.slower(tolerance))
    faster = tuple(c for c in changes if c.faster(tolerance))
    return Comparison(
        against, tolerance, _by_size(slower), _by_size(unsteady), _by_size(faster),
        len(changes) - len(slower) - len(unsteady) - len(faster),
        missing=tuple(_name(was[k]) for k in was if k not in now),
        new=tuple(_name(now[k]) for k in now if k not in was),
        untimed=tuple(_name(now[k]) for k in both if _change(was[k], now[k]) is None),
        notes=tuple(differences([was[k] for k in both], [now[k] for k in both])),
    )  # fmt: skip


def devices(rows: Sequence[Row]) -> list[str]:
    """The models of the rows, as their process saw them."""
    return sorted({str(r.get("device")) for r in rows})


def differences(old: Sequence[Row], new: Sequence[Row]) -> list[str]:
    """What is not the same around the two measurements."""
    found = []
    for fact in ("device", *FACTS):
        a, b = (", ".join(sorted({str(r.get(fact, "-")) for r in rows})) for rows in (old, new))
        found += [f"{fact}: {a} then, {b} now"] if a != b else []
    if any(r.get("how") == "wall" for r in new):
        found.append("wall clock on a CPU: these times say nothing of a kernel")
    return found


def _key(row: Row) -> tuple[str, str]:
    return str(row["suite"]), str(row["case"])


def _name(row: Row) -> str:
    return f"{row['suite']} {row['case']}"


def _change(old: Row, new: Row) -> Change | None:
    was, now = _time(old), _time(new)
    return None if was is None or now is None else Change(*_key(new), was, now, _span(old), _span(new))


def _time(row: Row) -> float | None:
    us = row.get("us")
    right = is_good(row) and isinstance(us, int | float) and not isinstance(us, bool) and us > 0
    return float(us) if right and us is not None else None


def _span(row: Row) -> tuple[float, float] | None:
    low, high = row.get("p10_us"), row.get("p90_us")
    return (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else None


def _by_size(changes: Sequence[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda c: -abs(c.percent)))


def _changes(found: Comparison, width: int) -> list[str]:
    kinds = (("SLOWER", found.slower), ("unsteady", found.unsteady), ("faster", found.faster))
    rows = [(c, word) for word, changes in kinds for c in changes]
    header = ("", "SUITE", "CASE", "WAS US", "IS US", "BY", "P10 TO P90 THEN", "AND NOW")
    cells = [
        (word, c.suite, c.case, number(c.was_us), number(c.now_us), f"{c.percent:+.1f} %", _spanned(c.was_span),
         _spanned(c.now_span) + (", overlapping" if c.overlaps else ""))
        for c, word in rows
    ]  # fmt: skip
    return table(header, cells, right=(3, 4, 5), width=width).split("\n")


def _spanned(span: tuple[float, float] | None) -> str:
    return "-" if span is None else f"{number(span[0])} to {number(span[1])}"


def _named(word: str, names: Sequence[str]) -> list[str]:
    more = [f"  and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return [*(f"{word}: {one_line(name)}" for name in names[:MAX_NAMED]), *more]


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def only_of(rows: Sequence[Row], models: Sequence[str]) -> list[Row]:
    """The rows of these models: a file may hold several."""
    return [r for r in rows if str(r.get("device")) in models]
