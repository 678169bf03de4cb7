"""The smoke gates: do the first minutes of a training run look as they should? Pure: rows and beats in, gates out.

The limits are those of contracts.md, Smoke gates. A gate whose figures were not told is `not judged`, and said to be:
it neither passes nor fails, but for those that every training must tell (rows, loss) and those that were asked for
(tokens/s). Standard library only; reads no file. Called by `orchestrator.runs.smoke`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MIN_ROWS = 100
FIRST_ROWS, LAST_ROWS = 50, 200
MIN_LOSS_DROP_PERCENT = 1.0
RATE_ROWS = 100
SLOW_FETCH_S, MAX_SLOW_FETCH_PERCENT = 2.0, 10.0
GATE_BEATS = 100
MIN_GATE_ENTROPY, MAX_GATE, MAX_COLLAPSED = 0.3, 0.85, 0.2
BRANCH_SHARES = (0.05, 0.8)
BRANCHES = ("cmp", "sel", "win")

Word = Literal["pass", "fail", "not judged"]


@dataclass(frozen=True)
class Steps:
    """What is known of the steps of a run, in their order: a list a column, of the rows that told it.

    Columns: step, loss (nats a token), lr, toks_per_s, grad_norm, step_time_s, dt_fetch_s (s), and whatever else there
    is.
    """

    rows: int = 0
    columns: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def of(self, name: str) -> Sequence[float]:
        return self.columns.get(name, ())


@dataclass(frozen=True)
class Gate:
    """One question and its answer. `at_least`, `at_most`: the limits (None: there is none on that side)."""

    name: str
    figure: float | None
    unit: str
    verdict: Word
    why: str
    at_least: float | None = None
    at_most: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "gate": self.name, "figure": self.figure, "unit": self.unit, "at_least": self.at_least,
            "at_most": self.at_most, "verdict": self.verdict, "why": self.why,
        }  # fmt: skip


def judge(steps: Steps, gates: Iterable[Mapping[str, Any]] = (), *, min_tps: float | None = None) -> tuple[Gate, ...]:
    """Every gate, in the order in which they are told.

    `gates`: the fields gate_* of the beats that have one, oldest first; without any nothing is said of gates.
    """
    told = [dict(row) for row in gates]
    return (rows_gate(steps), loss_gate(steps), rate_gate(steps, min_tps), fetch_gate(steps), *sparse_gates(told))


def rows_gate(steps: Steps) -> Gate:
    return _gate("rows", float(steps.rows), "rows", f"{steps.rows} whole rows of steps", at_least=float(MIN_ROWS))


def loss_gate(steps: Steps) -> Gate:
    """The mean of the last 200 rows, at least 1 % below that of the first 50. Shorter runs share rows between both."""
    loss = steps.of("loss")
    if not loss:
        return Gate("loss", None, "%", "fail", "no row tells a loss", at_least=MIN_LOSS_DROP_PERCENT)
    first, last = _mean(loss[:FIRST_ROWS]), _mean(loss[-LAST_ROWS:])
    rows = f"{first:.4g} over the first {min(FIRST_ROWS, len(loss))} rows, {last:.4g} over the last "
    why = f"{rows}{min(LAST_ROWS, len(loss))}"
    if not (math.isfinite(first) and math.isfinite(last)) or first == 0:
        return Gate("loss", None, "%", "fail", why, at_least=MIN_LOSS_DROP_PERCENT)
    return _gate("loss", 100 * (first - last) / abs(first), "% lower", why, at_least=MIN_LOSS_DROP_PERCENT)


def rate_gate(steps: Steps, min_tps: float | None) -> Gate:
    rates = [x for x in steps.of("toks_per_s") if math.isfinite(x)][-RATE_ROWS:]
    if not rates:
        verdict: Word = "not judged" if min_tps is None else "fail"
        return Gate("tokens/s", None, "tokens/s", verdict, "no row tells tokens/s", at_least=min_tps)
    figure, why = statistics.median(rates), f"median of the last {len(rates)} rows"
    if min_tps is None:
        return Gate("tokens/s", figure, "tokens/s", "not judged", f"{why}; no --min-tps was given")
    return _gate("tokens/s", figure, "tokens/s", why, at_least=min_tps)


def fetch_gate(steps: Steps) -> Gate:
    waits = steps.of("dt_fetch_s")
    if not waits:
        why = "no row tells how long its data took (dt_fetch_s)"
        return Gate("fetches", None, "% slow", "not judged", why, at_most=MAX_SLOW_FETCH_PERCENT)
    slow = sum(not x <= SLOW_FETCH_S for x in waits)  # a NaN is no fast one
    why = f"{slow} of {len(waits)} fetches took more than {SLOW_FETCH_S:g} s"
    return _gate("fetches", 100 * slow / len(waits), "% slow", why, at_most=MAX_SLOW_FETCH_PERCENT)


def sparse_gates(beats: Sequence[Mapping[str, Any]]) -> tuple[Gate, ...]:
    """Of sparse attention: medians over the last 100 beats that tell a figure; nothing of a figure that none tells."""
    found = []
    limits = (
        ("gate entropy", "gate_entropy_mean", MIN_GATE_ENTROPY, None),
        ("largest gate", "gate_max_gate", None, MAX_GATE),
        ("collapsed gates", "gate_collapse_frac", None, MAX_COLLAPSED),
    )
    for name, key, low, high in limits:
        values = _last(beats, key)
        if values:
            figure, why = statistics.median(values), f"median of {len(values)} beats"
            found.append(_gate(name, figure, "", why, at_least=low, at_most=high))
    shares = [b["gate_branch_shares"] for b in beats if _is_shares(b.get("gate_branch_shares"))][-GATE_BEATS:]
    for i, branch in enumerate(BRANCHES if shares else ()):
        figure = statistics.median(float(row[i]) for row in shares)
        low, high = BRANCH_SHARES
        found.append(
            _gate(f"share of {branch}", figure, "", f"median of {len(shares)} beats", at_least=low, at_most=high)
        )
    return tuple(found)


def is_go(gates: Iterable[Gate]) -> bool:
    return all(gate.verdict != "fail" for gate in gates)


def in_words(gates: Sequence[Gate]) -> str:
    """The verdict's reason, in a line."""
    failed = [g.name for g in gates if g.verdict == "fail"]
    passed, open_ = (sum(g.verdict == word for g in gates) for word in ("pass", "not judged"))
    rest = f"; {open_} not judged" if open_ else ""
    if failed:
        return f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}{rest}"
    return f"{passed} of {len(gates)} gates passed{rest}"


def _gate(
    name: str, figure: float, unit: str, why: str, *, at_least: float | None = None, at_most: float | None = None
) -> Gate:
    good = (at_least is None or figure >= at_least) and (at_most is None or figure <= at_most)
    return Gate(name, figure, unit, "pass" if good else "fail", why, at_least, at_most)


def _mean(values: Sequence[float]) -> float:
    """`statistics.fmean` raises where infinities of both signs meet."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _last(beats: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(b[key]) for b in beats if _is_number(b.get(key))][-GATE_BEATS:]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_shares(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == len(BRANCHES) and all(map(_is_number, value))
