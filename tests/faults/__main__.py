"""`make faults`: every fault at every moment, the table of them, and a row a cell for runbooks/results/faults.jsonl.

    python -m tests.faults [--only TEXT ...] [--jobs N] [--list] [--save FILE]

`--only` takes parts of cell names (`rank-killed`, `/halting`, `disk-full/training`). A few cells run at once, each in
a process of its own; those of the full stack come behind them, one after the other. Exit code 1 when one failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.benchrows import ROOT, where_and_when
from tests.faults.book import all_cells
from tests.faults.words import Cell, When

CELL_LIMIT_S = 420.0
FULL_LIMIT_S = 900.0
MARKS = {"ok": "ok", "FAIL": "FAIL", "skipped": "skip"}


def run_cell(name: str) -> dict[str, Any]:
    """Play one cell in a process of its own: {verdict, seconds, why}. Never raises."""
    cell = all_cells()[name]
    limit_s = FULL_LIMIT_S if cell.full else CELL_LIMIT_S
    argv = [sys.executable, "-m", "tests.faults.play", name]
    if cell.pids:
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *argv]
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"verdict": "FAIL", "seconds": limit_s, "why": f"not within {limit_s:.0f} s"}
    try:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"verdict": "FAIL", "seconds": 0.0, "why": f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"}
    return row


def chosen(only: Sequence[str]) -> list[Cell]:
    """The cells whose name has one of `only` in it; all when there is none."""
    return [c for c in all_cells().values() if not only or any(part in c.name for part in only)]


def run_all(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Verdicts as they come."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        asked = {pool.submit(run_cell, c.name): c for c in cells if not c.full}
        for future in as_completed(asked):
            yield asked[future], future.result()
    for cell in (c for c in cells if c.full):
        yield cell, run_cell(cell.name)


def repeat(cell: Cell) -> str:
    """The line that plays this cell again."""
    return f"python -m tests.faults --only {cell.name}"


def table(results: dict[str, dict[str, Any]], cells: Sequence[Cell]) -> str:
    """Fault by moment; a cell is its seconds, or FAIL or skip before them."""
    moments = [w for w in When if any(c.when is w for c in cells)]
    faults = list(dict.fromkeys(c.fault for c in cells))
    lines = [" " * 24 + "".join(f"{w.value[:9]:>10}" for w in moments)]
    for fault in faults:
        shown = []
        for when in moments:
            row = results.get(f"{fault}/{when}")
            word = "" if row is None or row["verdict"] == "ok" else MARKS[row["verdict"]] + " "
            shown.append("." if row is None else f"{word}{row['seconds']:.1f}")
        lines.append(f"{fault.value:<24}" + "".join(f"{text:>10}" for text in shown))
    return "\n".join(lines)


def save(path: Path, cells: Sequence[Cell], results: dict[str, dict[str, Any]], command: str) -> None:
    facts = where_and_when(command)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        for cell in cells:
            row = results[cell.name]
            figures = {
                "suite": "faults", "cell": cell.name, "fault": cell.fault.value, "phase": cell.when.value,
                "stack": "full" if cell.full else "shim", "verdict": row["verdict"], "seconds": row["seconds"],
            }  # fmt: skip
            why = {"why": row["why"]} if row["verdict"] == "skipped" else {}
            f.write(json.dumps({"v": 1, **figures, **why, **facts}) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Break a run in every way.")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cells whose name has this in it")
    parser.add_argument("--jobs", type=int, default=3, help="cells at once (default 3)")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    parser.add_argument("--save", type=Path, metavar="FILE", help="append a JSON row a cell")
    args = parser.parse_args(argv)
    cells = chosen(args.only)
    if args.list:
        print("\n".join(c.name for c in cells))
        return 0
    if not cells:
        parser.error(f"no cell has {' or '.join(args.only)} in its name; --list names them")
    results: dict[str, dict[str, Any]] = {}
    for cell, row in run_all(cells, args.jobs):
        results[cell.name] = row
        print(f"{MARKS[row['verdict']]:<5}{row['seconds']:7.1f} s  {cell.name}", flush=True)
        if row["verdict"] == "FAIL":
            print(f"      {row['why']}\n      again: {repeat(cell)}", flush=True)
        elif row["verdict"] == "skipped":
            print(f"      {row['why']}", flush=True)
    print("\n" + table(results, cells))
    counts = {word: sum(r["verdict"] == word for r in results.values()) for word in MARKS}
    print(f"\n{len(results)} cells: {counts['ok']} ok, {counts['FAIL']} failed, {counts['skipped']} skipped")
    if args.save is not None:
        save(args.save, cells, results, "make faults")
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main())
