"""`python -m kernels.bench.plot ROWS.jsonl OUT.svg`: latency of a decode step against the length of the cache.

Ours, the peers of the same run and the read limit, at B16 H8/8 D64, out of the rows alone; the same rows give the same
bytes. The newest row of a case counts. Never measures; called by a person, once rows are filed, and by a test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Points = list[tuple[int, float]]

PEERS = {"cuDNN (SDPA)": ("sdpa-cudnn",), "FlashAttention 2 (SDPA)": ("sdpa-flash",), "FlashAttention 3": ("fa3",)}
COLOURS = {
    "ours, fp16": "#0072b2",
    "ours, q4q8q4": "#d55e00",
    "cuDNN (SDPA)": "#009e73",
    "FlashAttention 2 (SDPA)": "#cc79a7",
    "FlashAttention 3": "#e69f00",
}


@dataclass(frozen=True)
class Series:
    """One line: (S, microseconds) in the order of S. kind: "ours", "peer" or "limit"."""

    name: str
    kind: str
    points: Points


def series(rows: Iterable[Row]) -> list[Series]:
    """The lines that the rows hold points for. ValueError when there is no right fp16 case at B16 H8/8 D64."""
    newest = {(r["suite"], r["case"]): r for r in rows if r.get("us") is not None and r.get("verdict") == "ok"}
    shaped = [r for r in newest.values() if {"B": 16, "Hq": 8, "Hkv": 8}.items() <= r["shape"].items()]
    dense = [r for r in shaped if r["suite"] == "kv-decode" and r["shape"]["D"] == 64 and r["dtype"] == "fp16"]
    plain = {"ds": 32, "dg": 32, "dv": 64, "tail": 0, "null": 0}
    coded = [r for r in shaped if r["suite"] == "decoupled" and plain.items() <= r["shape"].items()]
    coded = [r for r in coded if r["dtype"] == "q4q8q4"]
    if not dense:
        raise ValueError("no right row of suite kv-decode at B16 H8/8 D64 fp16: there is nothing to draw")
    lines = [Series(name, "peer", _peer(dense + coded, names)) for name, names in PEERS.items()]
    lines.append(Series("ours, fp16", "ours", _points(dense, "us")))
    lines.append(Series("read limit, fp16", "limit", _points(dense, "limit_us")))
    lines.append(Series("ours, q4q8q4", "ours", _points(coded, "us")))
    lines.append(Series("read limit, q4q8q4", "limit", _points(coded, "limit_us")))
    return [line for line in lines if line.points]


def _points(rows: Sequence[Row], key: str) -> Points:
    return sorted((int(r["shape"]["S"]), float(r[key])) for r in rows)


def _peer(rows: Sequence[Row], prefixes: tuple[str, ...]) -> Points:
    """The fastest way a peer was called at each length."""
    best: dict[int, float] = {}
    for r in rows:
        for name, us in r["peers"].items():
            if name.startswith(prefixes):
                best[int(r["shape"]["S"])] = min(float(us), best.get(int(r["shape"]["S"]), float("inf")))
    return sorted(best.items())


def draw(lines: Sequence[Series], out: Path, note: str) -> None:
    """Writes `out` (.svg or .png by its suffix), the same bytes for the same lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "kv-decode", "font.size": 11})
    figure, axes = plt.subplots(figsize=(8.4, 5.2), layout="constrained")
    for line in lines:
        x, y = zip(*line.points, strict=True)
        axes.plot(x, y, label=line.name, **_style(line))
    lengths = sorted({s for line in lines for s, _ in line.points})
    axes.set(xscale="log", yscale="log", xlabel="tokens in the cache (S)", ylabel="one decode step, microseconds")
    axes.set_xticks(lengths, [_tokens(s) for s in lengths], minor=False)
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda us, _: f"{us:g}"))
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.set_title(f"Decode step, 16 sequences, 8 heads of 64\n{note}", fontsize=11)
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else {"Software": None})
    plt.close(figure)


def _style(line: Series) -> dict[str, Any]:
    if line.kind == "limit":
        colour = COLOURS["ours, q4q8q4" if "q4q8q4" in line.name else "ours, fp16"]
        return {"color": colour, "linestyle": ":", "linewidth": 1.4}
    if line.kind == "peer":
        return {"color": COLOURS[line.name], "linestyle": "--", "linewidth": 1.4, "marker": "o", "markersize": 3.5}
    return {"color": COLOURS[line.name], "linewidth": 2.4, "marker": "o", "markersize": 5}


def _tokens(s: int) -> str:
    return f"{s // 1024}k" if s >= 1024 and s % 1024 == 0 else str(s)


def note_of(rows: Sequence[Row]) -> str:
    """Device, date and commit of the newest kv-decode row."""
    last = [r for r in rows if r["suite"] == "kv-decode"][-1]
    return f"{last['device']}, {last['date']}, commit {last['commit'][:12]}"


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m kernels.bench.plot ROWS.jsonl OUT.svg", file=sys.stderr)
        return 2
    source, out = Path(argv[0]), Path(argv[1])
    try:
        rows = [json.loads(line) for line in source.read_text().splitlines() if line]
        lines = series(rows)
    except (OSError, ValueError) as e:
        print(f"error: {source}: {e}", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(lines, out, note_of(rows))
    print(f"{out}: {len(lines)} lines, {out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
