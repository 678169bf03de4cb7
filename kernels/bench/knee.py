"""`python -m kernels.bench.knee ROWS.jsonl [--margin 1.2] [--write [DIR]]`: from which length one backend wins.

Reads rows of the bench and measures nothing. Shapes are grouped by everything but the length. A beats B "from L" when
it is faster by the margin at L and at every longer length that was measured; "until L", the same the other way round;
"always" and "never" speak of the measured lengths alone. Ours is held against peers by `attend_us` where a row has it:
peers append nothing either. `--write` installs the thresholds that `kernels.thresholds` reads: without DIR into this
checkout, with `--write $ORCH_HOME/thresholds` for the processes of this machine. Called by `workloads.bench` too.
Exit codes: 0; 1, the rows cannot be read, say nothing or cannot be written; 2, bad usage.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import thresholds
from kernels.thresholds import Rule, Thresholds

Row = Mapping[str, Any]
Times = dict[int, tuple[float, float]]
"""Length -> microseconds of A and of B."""
MARGIN = 1.2
TRITON = "triton"


@dataclass(frozen=True)
class Knee:
    """Where A beats B by the margin. `wins`: the lengths at which it does; times: all that were measured."""

    shape: str
    a: str
    b: str
    times: Times
    wins: tuple[int, ...]

    @property
    def start(self) -> int | None:
        """The length from which A wins for good: at it and at every longer one measured."""
        return _run(sorted(self.times, reverse=True), self.wins)

    @property
    def end(self) -> int | None:
        """The length until which A wins: at it and at every shorter one measured."""
        return _run(sorted(self.times), self.wins)

    def words(self) -> str:
        if not self.wins:
            return "never"
        if len(self.wins) == len(self.times):
            return "always" if len(self.times) > 1 else "at the one length measured"
        if self.start is not None:
            return f"from {self.start}"
        return f"until {self.end}" if self.end is not None else "never for good"

    def times_faster(self, length: int) -> float:
        a, b = self.times[length]
        return b / a


def _run(lengths: Sequence[int], wins: Sequence[int]) -> int | None:
    last = None
    for length in lengths:
        if length not in wins:
            break
        last = length
    return last


def knee(shape: str, a: str, b: str, times: Times, margin: float = MARGIN) -> Knee:
    """ValueError for a margin below 1, or without a time."""
    if margin < 1 or not times:
        raise ValueError(f"a margin of 1 or more and one length at least are needed, not {margin} and {len(times)}")
    wins = tuple(s for s in sorted(times) if times[s][1] >= margin * times[s][0])
    return Knee(shape, a, b, times, wins)


def knees(rows: Iterable[Row], margin: float = MARGIN) -> list[Knee]:
    """Both directions of every pair: each of ours against each peer of its rows, and ours against each other.

    Ours against ours: variants with a null token or a tail are held against the dense kernel alone.
    """
    found: list[Knee] = []
    for shape, ours in _shapes(rows).items():
        for name, by_length in ours.items():
            for peer in sorted({p for r in by_length.values() for p in r["peers"]}):
                times = {s: (_us(r), float(r["peers"][peer])) for s, r in by_length.items() if peer in r["peers"]}
                found += _both(shape, name, peer, times, margin)
        for a, b in _pairs(sorted(ours)):
            common = sorted(ours[a].keys() & ours[b].keys())
            times = {s: (float(ours[a][s]["us"]), float(ours[b][s]["us"])) for s in common}
            found += _both(shape, a, b, times, margin)
    return found


def _both(shape: str, a: str, b: str, times: Times, margin: float) -> list[Knee]:
    if not times:
        return []
    turned = {s: (y, x) for s, (x, y) in times.items()}
    return [knee(shape, a, b, times, margin), knee(shape, b, a, turned, margin)]


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if TRITON in (a, b) or "+" not in a + b:
                yield a, b


def _shapes(rows: Iterable[Row]) -> dict[str, dict[str, dict[int, Row]]]:
    """Shape without the length -> ours by name -> length -> row. The newest right row of a case counts.

    The decoupled kernel stands beside the dense one that attends over the same sizes in fp16.
    """
    shapes: dict[str, dict[str, dict[int, Row]]] = {}
    for row in _right(rows):
        s = row["shape"]
        if row["suite"] == "kv-decode":
            sizes, kind, name = (s["D"], s["D"]), row["dtype"], TRITON
        else:
            sizes, kind = (s["ds"] + s["dg"], s["dv"]), "fp16"
            tail = f" +tail{s['tail']}" if s["tail"] else ""
            name = f"decoupled {row['dtype']}{' +null' if s['null'] else ''}{tail}"
        shape = f"B{s['B']} H{s['Hq']}/{s['Hkv']} D{sizes[0]}/{sizes[1]} {kind} on {row['device']}"
        shapes.setdefault(shape, {}).setdefault(name, {})[int(s["S"])] = row
    return shapes


def _right(rows: Iterable[Row]) -> list[Row]:
    newest = {(r["suite"], r["case"], r["device"]): r for r in rows if r.get("suite") in ("kv-decode", "decoupled")}
    return [r for r in newest.values() if r["verdict"] == "ok" and r.get("us")]


def _us(row: Row) -> float:
    return float(row.get("attend_us") or row["us"])


def table(found: Sequence[Knee], margin: float = MARGIN) -> str:
    """In words, for a person: a line a pair, the winning direction first; a pair that nobody wins says how close."""
    lines = [f"faster by {margin:g}x for good, among the lengths measured"]
    shape = ""
    for one, other in zip(found[::2], found[1::2], strict=True):
        if one.shape != shape:
            shape = one.shape
            lines.append(f"\n{shape}")
        best, rest = (one, other) if one.wins or not other.wins else (other, one)
        said = best.words() if best.wins else "neither"
        if rest.wins:
            said += f", and the other way round {rest.words()}"
        low, high = min(best.times), max(best.times)
        ends = ", ".join(f"{_cut(best.times_faster(s))}x at {s}" for s in dict.fromkeys((low, high)))
        lines.append(f"  {best.a:<25} over {best.b:<16} {said:<14} {ends}")
    return "\n".join(lines)


def _cut(ratio: float) -> str:
    """Two digits, cut: 1.197 is not the 1.2 that it failed to reach."""
    return f"{math.floor(100 * ratio) / 100:.2f}"


def documents(rows: Iterable[Row], source: str, margin: float = MARGIN) -> list[Thresholds]:
    """The thresholds that rows of suite kv-decode give: one for each GPU model. `source`: what the rows are called.

    Every measured shape has a rule from its shortest length, so that it is known where Triton was measured to stay.
    SDPA takes the lengths from which (or until which) one of its backends is faster by the margin, for good. Rows in
    which the reference stood in for Triton say nothing of it.
    """
    made = []
    dense = [r for r in _right(rows) if r["suite"] == "kv-decode" and not str(r.get("why")).startswith("reference")]
    for gpu in sorted({r["device"] for r in dense}):
        groups = [g for g in _grouped([r for r in dense if r["device"] == gpu]) if _sdpa(g)]
        own = [row for group in groups for row in group]
        if not own:
            continue
        commit, date = (", ".join(sorted({str(r[key]) for r in own})) for key in ("commit", "date"))
        rules = [rule for group in groups for rule in _rules(group, margin)]
        made.append(Thresholds(thresholds.VERSION, "kv-decode", gpu, margin, commit, date, source, tuple(rules)))
    return made


def _sdpa(rows: Sequence[Row]) -> list[str]:
    """The peers among them that dispatch can call."""
    return sorted({p for r in rows for p in r["peers"] if p in thresholds.BACKENDS})


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        s = row["shape"]
        key = (s["Hq"] // s["Hkv"], s["D"], row["dtype"], s["B"] * s["Hkv"])
        groups.setdefault(key, []).append(row)
    return [groups[key] for key in sorted(groups, key=str)]


def _rules(rows: Sequence[Row], margin: float) -> list[Rule]:
    """The rules of one shape: who is first at the shortest length, and each length at which that changes."""
    s = rows[0]["shape"]
    lengths = sorted({int(r["shape"]["S"]) for r in rows})
    chosen = dict.fromkeys(lengths, TRITON)
    for peer in _sdpa(rows):
        both = {int(r["shape"]["S"]): (float(r["peers"][peer]), _us(r)) for r in rows if peer in r["peers"]}
        if set(both) != set(lengths):
            continue  # a peer without a time at some length is not known to win for good
        held = knee("", peer, TRITON, both, margin)
        for length in lengths:
            late = held.start is not None and length >= held.start
            if late or (held.end is not None and length <= held.end):
                old = chosen[length]
                chosen[length] = peer if old == TRITON or both[length][0] < _at(rows, length, old) else old
    first = (s["Hq"] // s["Hkv"], s["D"], str(rows[0]["dtype"]), s["B"] * s["Hkv"])
    kept = [length for i, length in enumerate(lengths) if not i or chosen[length] != chosen[lengths[i - 1]]]
    return [Rule(*first, length, chosen[length]) for length in kept]


def _at(rows: Sequence[Row], length: int, peer: str) -> float:
    return min(float(r["peers"][peer]) for r in rows if r["shape"]["S"] == length)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.knee", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("rows", type=Path, help="a JSON Lines file of the bench")
    parser.add_argument("--margin", type=float, default=MARGIN, help="how many times faster (1.2)")
    parser.add_argument("--write", nargs="?", const="", metavar="DIR", help="install the thresholds (in this checkout)")
    args = parser.parse_args(argv)
    if not 1 <= args.margin < 100:
        parser.error(f"--margin {args.margin}: 1 to 100, 1.2 is the usual one")
    try:
        rows = [json.loads(line) for line in args.rows.read_text().splitlines() if line.strip()]
        found = knees(rows, args.margin)
        if not found:
            raise ValueError(f"{args.rows} holds no right row of kv-decode or decoupled with a peer")
        print(table(found, args.margin))
        called = args.rows.name if args.rows.is_absolute() else args.rows.as_posix()
        if args.write is not None:
            for held in documents(rows, called, args.margin):
                print(f"\nwritten: {thresholds.install(held, Path(args.write) if args.write else None)}")
    except (OSError, ValueError, KeyError, TypeError) as e:
        print(f"error: {args.rows}: {type(e).__name__}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
