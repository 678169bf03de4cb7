"""`python -m kernels.bench [bandwidth|kv-decode|decoupled|all] [--jsonl F] [--quick] [--sweep] [--device cuda|cpu]`

Measures the memory, then every case: right first, then how long, beside the peers of this process. Appends a row a case
as it comes and prints a table last. Exit codes: 0, every case was right; 1, one was wrong or failed; 2, bad usage.
A missed goal is said in its row and fails nothing. `--device cpu` is for tests of the bench: tiny shapes, wall clock.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels.bench import bandwidth, dense, quantized, rows
from kernels.bench.probe import Bandwidth, measure
from kernels.bench.rows import Facts, Measured

SUITES = ("bandwidth", "kv-decode", "decoupled")


@dataclass(frozen=True)
class Options:
    suites: tuple[str, ...]
    jsonl: Path | None
    quick: bool
    sweep: bool
    device: torch.device
    command: str
    """What a row says measured it: the same again, but for the file it goes to."""


def parsed(argv: Sequence[str]) -> Options:
    """The command line; exits with 2 when it is not understood."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("suite", nargs="?", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    parser.add_argument("--quick", action="store_true", help="few shapes and replays: a look, no figures")
    parser.add_argument("--sweep", action="store_true", help="kv-decode: the cache lengths 128 to 4096 alone")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tests the bench itself, and times nothing of use")
    suites = SUITES if args.suite == "all" else (args.suite,)
    device = torch.device("cuda", torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    flags = [f"--{name}" for name in ("quick", "sweep") if getattr(args, name)]
    flags += ["--device cpu"] if args.device == "cpu" else []
    command = " ".join(["python -m kernels.bench", args.suite, *flags])
    return Options(suites, args.jsonl, args.quick, args.sweep, device, command)


def measurements(options: Options, found: Bandwidth) -> Iterator[tuple[str, Measured]]:
    """(suite, case) one after the other; the memory of each is given back before the next."""
    replays = 2 if options.device.type == "cpu" else 7 if options.quick else 15
    if "bandwidth" in options.suites:
        yield from (("bandwidth", m) for m in bandwidth.measured(found))
    if "kv-decode" in options.suites:
        for case in dense.cases(options.device, quick=options.quick, sweep=options.sweep):
            yield "kv-decode", dense.measure(case, found, options.device, replays=replays)
            _free(options.device)
    if "decoupled" in options.suites:
        for cases in quantized.cases(options.device, quick=options.quick):
            group = quantized.Group(found, options.device, replays)
            for member in cases:
                yield "decoupled", group.measure(member)
                _free(options.device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def run(options: Options, where: Facts) -> list[dict[str, Any]]:
    """Every row, appended to `options.jsonl` as it is made."""
    with torch.inference_mode():
        found = measure(options.device, quick=options.quick)
        done = []
        for suite, m in measurements(options, found):
            row = rows.row_of(suite, m, where, found.read_tbs)
            if options.jsonl is not None:
                rows.append(options.jsonl, [row])
            done.append(row)
    return done


def main(argv: Sequence[str]) -> int:
    options = parsed(argv)
    try:
        where = rows.facts(options.device, options.command)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    start = time.monotonic()
    done = run(options, where)
    print(rows.table(done))
    print_notes(done)
    print(f"{len(done)} rows in {time.monotonic() - start:.0f} s on {where.machine}, commit {where.commit[:12]}")
    return int(any(r["verdict"] != "ok" for r in done))


def print_notes(done: Sequence[dict[str, Any]]) -> None:
    """What did not go as it should, each thing once: peers without a time, cases that failed."""
    said = {f"peer {name}: {why}" for r in done for name, why in r["peer_notes"].items()}
    said |= {f"{r['case']}: {r['error']}" for r in done if "error" in r}
    for line in sorted(said)[:12]:
        print(line[:110])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
