"""The go / no-go gate of the kernels: `python -m kernels.parity [kv-decode] [decoupled] [--device cuda|cpu] [--full]`.

Each family has a module `parity` with `cells(full)` and `run(cell, device, seed)`; this runner prints one line a cell,
writes one JSON row a cell, prints the command that repeats a failure, and ends with exit 0 (go) or 1 (no-go; also when
there was nothing to run). On a CPU the kernels run in Triton's interpreter. Never times, never widens a tolerance:
kernels.checks.judge decides. Called by a person, by CI and before every benchmark.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from kernels.checks import Verdict

FAMILIES = {"kv-decode": "kernels.kv_decode.parity", "decoupled": "kernels.decoupled.parity"}


@dataclass(frozen=True)
class Cell:
    """One case of a family. `id` is stable and says what is special; `params`: plain values."""

    family: str
    id: str
    params: Mapping[str, Any]
    gpu_only: bool = False
    cpu_only: bool = False


class Wrong(Exception):
    """Raised by a cell for a fault that is no number: a slot that changed, a result that depends on the batch."""


@dataclass(frozen=True)
class Outcome:
    """`said`: why, when there is no verdict (`Wrong`, or what a kernel raised)."""

    cell: Cell
    verdict: Verdict | None
    said: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.verdict is not None and self.verdict.ok


def cells_of(family: str, full: bool) -> list[Cell]:
    """The cells of a family; ValueError for a family that is not there, or two cells of one id."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}: there are {', '.join(FAMILIES)}")
    cells: list[Cell] = importlib.import_module(FAMILIES[family]).cells(full)
    ids = [cell.id for cell in cells]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"{family} has two cells {twice[0]!r}")
    return cells


def run_cell(cell: Cell, device: str, seed: int) -> Outcome:
    """One cell, judged. What it raises is its outcome: one kernel that fails to compile must not hide the others."""
    start = time.perf_counter()
    verdict, said = None, ""
    try:
        verdict = importlib.import_module(FAMILIES[cell.family]).run(cell, torch.device(device), seed)
        said = "" if verdict.ok else str(verdict)
    except Wrong as e:
        said = f"WRONG: {e}"
    except Exception as e:  # the top of the loop over cells, see above
        said = f"failed: {type(e).__name__}: {' '.join(str(e).split())[:400]}"
    return Outcome(cell, verdict, said, time.perf_counter() - start)


def run_all(cells: Sequence[Cell], device: str, seed: int, jobs: int) -> Iterator[Outcome]:
    """In order. `jobs` processes share the device: compiling is most of the time on a GPU."""
    if jobs <= 1:
        yield from (run_cell(cell, device, seed) for cell in cells)
        return
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as p:
        yield from p.map(run_cell, cells, [device] * len(cells), [seed] * len(cells))


def repeat(cell: Cell, device: str, seed: int) -> str:
    """The command that runs this cell alone."""
    more = f" --seed {seed}" if seed else ""
    return f"python -m kernels.parity {cell.family} --device {device} --only '{cell.id}'{more}"


def line(outcome: Outcome) -> str:
    v = outcome.verdict
    numbers = f"{v.err:9.2e} {v.tol:9.2e}" if v is not None else f"{'-':>9} {'-':>9}"
    word = "ok" if outcome.ok else "WRONG"
    return f"{word:<5} {numbers} {outcome.seconds:6.2f}s  {outcome.cell.family}  {outcome.cell.id}"


def rows(outcomes: Sequence[Outcome], device: str, seed: int) -> list[dict[str, Any]]:
    """The rows of the run (runbooks/results): no time in them, the verdict "ok" or why not."""
    from kernels.bench.rows import facts

    made, where = [], vars(facts(torch.device(device), ""))
    for o in outcomes:
        v = o.verdict
        numbers = {} if v is None else {"err": v.err, "tol": v.tol, "worst": list(v.worst)}
        finite = {k: None if x == float("inf") else x for k, x in numbers.items()}
        made.append(
            {
                "v": 1,
                "suite": f"parity-{o.cell.family}",
                "case": o.cell.id,
                "shape": {k: x for k, x in o.cell.params.items() if k != "dtype"},
                "dtype": o.cell.params.get("dtype"),
                "us": None,
                "limit_us": None,
                "ratio": None,
                "err": None,
                "tol": None,
                "worst": None,
                **finite,
                "verdict": "ok" if o.ok else o.said,
                **where,
                "command": repeat(o.cell, device, seed),
            }
        )
    return made


def choose(families: Sequence[str], full: bool, only: str | None, device: str) -> tuple[list[Cell], list[Cell]]:
    """(cells to run, cells left out because they are for the other device). ValueError when `only` names no cell."""
    names = list(families) or list(FAMILIES)
    if only is None:
        cells = [cell for name in names for cell in cells_of(name, full)]
    else:
        every = [cell for name in names for size in (True, False) for cell in cells_of(name, size)]
        cells = list({cell.id: cell for cell in every if cell.id == only}.values())
        if not cells:
            near = list(dict.fromkeys(cell.id for cell in every if only in cell.id))[:3]
            raise ValueError(f"no cell {only!r} in {', '.join(names)}" + (f"; near: {near}" if near else ""))
    runs = [cell for cell in cells if not (cell.gpu_only if device == "cpu" else cell.cpu_only)]
    return runs, [cell for cell in cells if cell not in runs]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m kernels.parity", description="Kernels against their definitions.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help="the whole matrix: minutes on a GPU, hours on a CPU")
    parser.add_argument("--only", metavar="ID", help="one cell")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append one JSON row a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the device")
    asked = parser.parse_args(argv)
    if asked.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        torch.set_num_threads(1)  # tensors of a few kB: threads would only wait for one another
    os.environ["KERNELS_BACKEND"] = "triton"  # the gate judges kernels, never the reference against itself
    try:
        cells, left_out = choose(asked.families, asked.full, asked.only, asked.device)
    except ValueError as e:
        parser.error(str(e))
    outcomes: list[Outcome] = []
    for outcome in run_all(cells, asked.device, asked.seed, asked.jobs):
        outcomes.append(outcome)
        print(line(outcome), flush=True)
        if not outcome.ok:
            print(f"      {outcome.said}\n      {repeat(outcome.cell, asked.device, asked.seed)}", flush=True)
    if asked.jsonl is not None:
        from kernels.bench.rows import append

        append(asked.jsonl, rows(outcomes, asked.device, asked.seed))
    wrong = sum(not o.ok for o in outcomes)
    other = "a GPU" if asked.device == "cpu" else "the interpreter"
    rest = f"; {len(left_out)} cells are for {other} and were left out" if left_out else ""
    go = bool(outcomes) and not wrong
    print(f"go: {len(outcomes)} cells{rest}" if go else f"no-go: {wrong} of {len(outcomes)} cells wrong{rest}")
    return 0 if go else 1


if __name__ == "__main__":
    # One Cell class for the runner and the families, which import it from here.
    from kernels.parity import main as run_main

    sys.exit(run_main())
