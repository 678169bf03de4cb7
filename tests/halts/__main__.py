"""`make halts`: a thousand halts of a shim and its rank, twenty of a whole run; how many processes stayed. Not a test.

    python -m tests.halts [--n 1000] [--full 20] [--seed 1] [--at-once 4] [--save runbooks/results/halts.jsonl]

Prints a line for each hundred and exits 1 when anything stayed. The same seed is the same halts; moments differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchrows import Row, report  # noqa: E402
from tests.halts.drive import Ending, drive  # noqa: E402
from tests.halts.full import full_halts  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    if options.n:
        rows += shim_rows(options.n, options.seed, options.at_once)
    if options.full:
        rows += full_rows(options.full)
    command = f"python -m tests.halts --n {options.n} --full {options.full} --seed {options.seed}"
    return report(rows, "halts", command, options.save)


def shim_rows(n: int, seed: int, at_once: int) -> list[Row]:
    done: list[Ending] = []

    def tell(ending: Ending) -> None:
        done.append(ending)
        if ending.story:
            print(ending.story, file=sys.stderr)
        if len(done) % 100 == 0:
            print(f"{len(done)} halts, {sum(bool(e.story) for e in done)} not clean", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="orch-halts-") as folder:
        endings = drive(n, seed, at_once, Path(folder), tell)
    print(f"causes: {dict(Counter(e.cause for e in endings))}", file=sys.stderr)
    times = sorted(e.seconds for e in endings)
    return [
        Row("halts of a shim and its rank", len(endings), "halts", None),
        Row("processes that they had to end", sum(e.processes for e in endings), "processes", None),
        Row("halts that left a process", sum(bool(e.story) for e in endings), "halts", 0),
        Row("asked to nothing left, median (SIGKILL after 1.2 s)", statistics.median(times), "s", None),
        Row("asked to nothing left, the longest", times[-1], "s", 60),
    ]


def full_rows(n: int) -> list[Row]:
    times, left = full_halts(n, lambda text: print(text, file=sys.stderr))
    return [
        Row("halts of a whole run: keeper, Ray, supervisor", n, "halts", None),
        Row("whole runs that left a process", left, "halts", 0),
        Row("`orch halt` of a whole run, median", statistics.median(times), "s", None),
        Row("`orch halt` of a whole run, the longest", max(times), "s", 90),
    ]


if __name__ == "__main__":
    sys.exit(main())
