"""Tables of the kernels' rows: ours, the read limit, the best peer of the same run, the error, and the goal.

`runbooks.evidence` gives it the newest row of every case of `runbooks/results/kernels.jsonl` and the name of a block:
kernels-kv-decode, kernels-cache-sweep, kernels-decoupled or kernels-bandwidth. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
SWEEP = "cache-sweep"
NEEDED = ("case", "suite", "limit_us", "verdict", "device", "machine", "date", "commit", "command")


def of_block(block: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that a block shows; the sweep is a part of kv-decode. None of them for a block that nobody knows."""
    if block == SWEEP:
        return sorted((r for r in rows if r.get("old_target_us")), key=lambda r: int(r["shape"]["S"]))
    return [r for r in rows if r["suite"] == block]


def table(block: str, rows: Sequence[Row]) -> str:
    """Markdown: a line a case, without where the rows come from."""
    columns = COLUMNS[SWEEP if block == SWEEP else "bandwidth" if block == "bandwidth" else "decode"]
    head = [f"| {' | '.join(name for name, _ in columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(cell(r) for _, cell in columns)} |" for r in rows)])


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ours(row: Row) -> str:
    return _us(row.get("us")) if row["verdict"] == "ok" else str(row["verdict"]).upper()


def _share(row: Row) -> str:
    return "–" if row.get("ratio") is None else f"{100 * row['ratio']:.0f} %"


def _peer(row: Row) -> str:
    timed = row.get("peers") or {}
    if not timed:
        return "–"
    name, us = min(timed.items(), key=lambda item: float(item[1]))
    return f"{_us(us)} ({name})"


def _error(row: Row) -> str:
    return "–" if row.get("err") is None else f"{row['err']:.1e} / {row['tol']:.1e}"


def _goal(row: Row) -> str:
    if row.get("must_us") is None:
        return "–"
    strong = "" if row.get("strong_us") is None else f", strong ≤ {_us(row['strong_us'])}"
    return f"**{row['met']}** (must ≤ {_us(row['must_us'])}{strong})"


def _terabytes(row: Row) -> str:
    return "–" if not row.get("us") or not row["bytes"] else f"{row['bytes'] / row['us'] / 1e6:.2f}"


Columns = list[tuple[str, Callable[[Row], str]]]
_CASE: Columns = [("case", lambda r: str(r["case"]))]
_TIMES: Columns = [
    ("ours, us", _ours),
    ("read limit, us", lambda r: _us(r["limit_us"])),
    ("of the limit", _share),
    ("best peer, us", _peer),
]
COLUMNS: dict[str, Columns] = {
    "decode": [*_CASE, *_TIMES, ("error / allowed", _error), ("goal, us", _goal)],
    SWEEP: [*_CASE, *_TIMES, ("old target of 10 us", lambda r: str(r.get("old_target", "–")))],
    "bandwidth": [*_CASE, ("us", _ours), ("TB/s", _terabytes)],
}
