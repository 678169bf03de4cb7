"""The lines of a suite's plot, out of its rows alone: time against length, or against bytes. Pure; draws nothing.

A line is one shape at several lengths (or sizes); a shape that was measured at one length has none. Called by
`workloads.bench.plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workloads.bench.matrix import is_good
from workloads.judging.book import Row

Points = tuple[tuple[int, float], ...]
AXES: Mapping[str, tuple[str, str, str]] = {
    "bandwidth": ("bytes", "bytes read", "a pure read of memory, launch included"),
    "kv-decode": ("S", "tokens in the cache (S)", "one decode step over an fp16 cache"),
    "decoupled": ("S", "tokens in the cache (S)", "one decode step over the decoupled cache"),
    "comm": ("bytes", "bytes reduced", "all-reduce"),
}
"""Suites with a plot: the number of `shape` on the x axis, what it is, and what was timed."""
MOST = 6
"""Lines of ours in one plot, the longest ones: more cannot be told apart."""
FAMILIES = {
    "SDPA, cuDNN": "sdpa-cudnn", "SDPA, flash": "sdpa-flash", "FlashAttention 3": "fa3", "FlashInfer": "flashinfer",
    "SDPA": "sdpa",
}  # fmt: skip
"""Peers by the beginning of their names, the longest first."""


@dataclass(frozen=True)
class Line:
    """(x, microseconds) in the order of x. kind: ours, limit, peer."""

    name: str
    kind: str
    points: Points


def lines_of(suite: str, rows: Sequence[Row]) -> list[Line]:
    """Ours with its limits, and the peers beside the longest line; none for a suite without a plot."""
    if suite not in AXES:
        return []
    axis = AXES[suite][0]
    right = [r for r in rows if r["suite"] == suite and is_good(r) and r.get("us") and axis in (r.get("shape") or {})]
    groups: dict[str, list[Row]] = {}
    for row in right:
        groups.setdefault(_family(row, axis), []).append(row)
    kept = {name: group for name, group in groups.items() if len(group) > 1}
    names = sorted(kept, key=lambda n: -len(kept[n]))[:MOST]
    found = [Line(name, "ours", _points(kept[name], axis, "us")) for name in kept if name in names]
    found += [Line(name, "limit", _points(kept[name], axis, "limit_us")) for name in kept if name in names]
    return [line for line in [*found, *(_peers(kept[names[0]], axis) if names else [])] if len(line.points) > 1]


def _family(row: Row, axis: str) -> str:
    """What the rows of a line have in common: their shape but for the axis, dtype and variant."""
    shape = {k: v for k, v in row["shape"].items() if k != axis}
    if {"B", "Hq", "Hkv"} <= shape.keys():
        size = f"D{shape['D']}" if "D" in shape else f"{shape['ds']}+{shape['dg']}/{shape['dv']}"
        more = f"{' +null' if shape.get('null') else ''}{f' +tail{tail}' if (tail := shape.get('tail')) else ''}"
        return f"B{shape['B']} H{shape['Hq']}/{shape['Hkv']} {size} {row['dtype']}{more}"
    what = [str(row["case"]).split(" ")[0].rstrip(",")] if row["suite"] == "bandwidth" else []  # read, copy, empty
    return " ".join([*what, *(f"{v} {k}" for k, v in shape.items()), str(row["dtype"])])


def _points(rows: Sequence[Row], axis: str, key: str) -> Points:
    return tuple(sorted((int(r["shape"][axis]), float(r[key])) for r in rows if r.get(key)))


def _peers(rows: Sequence[Row], axis: str) -> list[Line]:
    """The fastest way each peer was called at each length."""
    best: dict[str, dict[int, float]] = {name: {} for name in FAMILIES}
    for row in rows:
        x = int(row["shape"][axis])
        for name, us in (row.get("peers") or {}).items():
            family = next((f for f, start in FAMILIES.items() if name.startswith(start)), None)
            if family is not None:
                best[family][x] = min(float(us), best[family].get(x, float("inf")))
    return [Line(name, "peer", tuple(sorted(points.items()))) for name, points in best.items()]
