"""Plots of a bench run as PNG, a suite each. Needs matplotlib, which no pod has to have: without it there is none.

Called by `workloads.bench.result`. The same rows give the same picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from workloads.bench.curves import AXES, Line, lines_of
from workloads.judging.book import Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREYS = ("#333333", "#666666", "#888888", "#aaaaaa", "#bbbbbb")
UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k"))


def drawn(suites: Sequence[str], rows: Sequence[Row], note: str) -> tuple[dict[str, bytes], str]:
    """(PNG by suite, why there is none or fewer; "" when nothing is missing)."""
    lines = {suite: lines_of(suite, rows) for suite in suites if suite in AXES}
    wanted = {suite: found for suite, found in lines.items() if found}
    if not wanted:
        return {}, "no suite was measured at two lengths: there is nothing to draw"
    try:
        import matplotlib as mpl
    except ImportError:
        return {}, "matplotlib is not installed for this Python: no plots (pip install matplotlib)"
    mpl.use("Agg")
    return {suite: _png(suite, found, note) for suite, found in wanted.items()}, ""


def _png(suite: str, lines: Sequence[Line], note: str) -> bytes:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    _, axis, what = AXES[suite]
    with mpl.rc_context({"font.size": 11}):
        figure, axes = plt.subplots(figsize=(8.4, 5.2), layout="constrained")
        for line, style in zip(lines, _styles(lines), strict=True):
            x, y = zip(*line.points, strict=True)
            axes.plot(x, y, **style)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="microseconds (less is better)")
        ticks = sorted({x for line in lines for x, _ in line.points})
        axes.set_xticks(ticks, [short(x) for x in ticks], minor=False)
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda us, _: f"{us:g}"))
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.set_title(f"{suite}: {what}\n{note}", fontsize=11)
        axes.legend(frameon=False, fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    return out.getvalue()


def _styles(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Ours in colour, its limit dotted in the same colour (named once), peers dashed in grey."""
    ours = [line.name for line in lines if line.kind == "ours"]
    peers = [line.name for line in lines if line.kind == "peer"]
    named = next((line for line in lines if line.kind == "limit"), None)
    found: list[dict[str, Any]] = []
    for line in lines:
        if line.kind == "peer":
            grey = GREYS[peers.index(line.name) % len(GREYS)]
            found.append({"label": line.name, "color": grey, "linestyle": "--", "marker": "o", "markersize": 3.5})
            continue
        colour = COLOURS[ours.index(line.name) % len(COLOURS)]
        if line.kind == "limit":
            label = "read limit of each, in its colour" if line is named else None
            found.append({"label": label, "color": colour, "linestyle": ":", "linewidth": 1.4})
        else:
            found.append({"label": f"ours, {line.name}", "color": colour, "linewidth": 2.2, "marker": "o"})
    return found


def short(x: int) -> str:
    """`8k`, `256M`; a number that is no such multiple as it is."""
    return next((f"{x // size}{unit}" for size, unit in UNITS if x >= size and x % size == 0), str(x))
