"""Which launch is fastest, measured: `python -m kernels.decoupled.tune [--minutes 3] [--out F] [--quick]` on a GPU.

Each candidate (passes, partitions, stages, registers a thread, overlapped reduce) is compiled in a process of its own,
judged against fp64 over the dequantized cache, and only then timed: a CUDA graph over inputs rotated past the L2, the
median. Prints the best per shape last; `plan` and `triton_decode` hold the winners as constants. Never times a wrong
kernel, and uses nothing that the bench does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.bench.quantized import Case, Copy, check, make_copy
from kernels.bench.timing import Launch, graph_time, rotation
from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.plan import DecoupledPlan
from kernels.decoupled.reference import NullToken

READ_TBS = 4.57  # a pure read on one H200: the limit shown beside the times
BASE = Case(16, 8, 8, 32, 32, 64, 2048)
SHAPES = (
    BASE,
    *(replace(BASE, length=n) for n in (128, 512, 8192, 32768, 131072)),
    *(
        replace(BASE, length=8192, **more)
        for more in ({"null": True}, {"tail": 128}, {"kinds": "q8q8q8"}, {"kinds": "fp16"})
    ),
    replace(BASE, length=2048, tail=128),
    Case(1, 32, 8, 64, 64, 128, 32768),
    Case(64, 8, 8, 32, 32, 64, 2048),
    Case(256, 8, 8, 32, 32, 64, 2048),
)


@dataclass(frozen=True)
class Candidate:
    passes: int
    partitions: int
    stages: int = 3
    registers: int | None = None
    ahead: int = 2
    overlap: bool = True

    def __str__(self) -> str:
        over = "" if self.overlap else " apart"
        return f"{self.passes}p{self.partitions} s{self.stages} r{self.registers or '-'} a{self.ahead}{over}"


@dataclass
class Tuned:
    """A plan that launches as a candidate says; what `kernels.bench.quantized` wants of a plan."""

    plan: DecoupledPlan
    candidate: Candidate
    part: str = "both"

    def run(
        self, q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, *, null: NullToken | None, out: Tensor | None
    ) -> Tensor:
        from kernels.decoupled import triton_decode, triton_reduce

        assert out is not None
        c, dims = self.candidate, cache.dims
        rows = None if null is None else null.rows(cache.batch, cache.kv_heads, dims)
        args = (q_sem, q_geo, cache, rows, self.plan.scratch, out, self.plan.lse)
        if self.part != "reduce":
            triton_decode.launch(
                *args, passes=c.passes, partitions=c.partitions, stages=c.stages, registers=c.registers,
                overlap=c.overlap, ahead=c.ahead,
            )  # fmt: skip
        if c.passes == 2 and self.part != "decode":
            triton_reduce.launch(*args, partitions=c.partitions, overlap=c.overlap)
        return out

    def why(self) -> str:
        return str(self.candidate)


def candidates(case: Case, quick: bool) -> Iterator[Candidate]:
    pairs = case.batch * case.kv_heads
    blocks = -(-case.length // 64)
    each = sorted({min(blocks, max(1, 132 * n // pairs)) for n in ((4, 8, 12) if not quick else (8,))})
    for partitions in each:
        yield Candidate(2, partitions)
    yield Candidate(1, 1)
    if case.length in (2048, 8192) and case == replace(BASE, length=case.length):
        for ahead in (0, 1, 3):
            yield Candidate(2, 8, ahead=ahead)
        yield Candidate(2, 8, stages=4)
        yield Candidate(2, 12, registers=168)
        yield Candidate(2, 16, registers=128)
        yield Candidate(2, 8, overlap=False)


def launcher(plan: Tuned, copies: list[Copy], i: int) -> Launch:
    c = copies[i]
    return lambda: plan.run(c.q_sem_BHS, c.q_geo_BHG, c.cache, null=c.null, out=c.out_BHV)


def measure(case: Case, candidate: Candidate, copies: list[Copy]) -> dict[str, Any]:
    """One row: verdict first, then microseconds."""
    cache, device = copies[0].cache, copies[0].cache.lengths.device
    row: dict[str, Any] = {"case": case.name, "candidate": str(candidate), **asdict(candidate)}
    plan = DecoupledPlan.of(
        cache, case.heads, passes=candidate.passes, partitions=candidate.partitions if candidate.passes == 2 else None
    )
    for copy in copies:
        copy.out_BHV.fill_(torch.nan)
    tuned = Tuned(plan, candidate)
    try:
        verdict, _ = check(tuned, copies[0])
    except Exception as e:  # a candidate that does not compile must not hide the others
        return {**row, "error": f"{type(e).__name__}: {e}"[:300]}
    row |= {"err": verdict.err, "tol": verdict.tol, "ok": verdict.ok}
    if not verdict.ok:
        return row
    for part in ("both", "decode") if candidate.passes == 2 else ("both",):
        one = Tuned(plan, candidate, part)
        timing = graph_time(partial(launcher, one, copies), len(copies), device=device, replays=9)
        row["us" if part == "both" else f"{part}_us"] = round(timing.us, 2)
    return row


def compile_one(case: Case, candidate: Candidate) -> str:
    """In a process of its own, so that many compile at once; the results lie in Triton's cache."""
    device = torch.device("cuda")
    small = replace(case, batch=1, length=200)
    copy = make_copy(small, device, 0)
    plan = DecoupledPlan.of(
        copy.cache,
        case.heads,
        passes=candidate.passes,
        partitions=candidate.partitions if candidate.passes == 2 else None,
    )
    try:
        launch = Tuned(plan, candidate)
        launch.run(copy.q_sem_BHS, copy.q_geo_BHG, copy.cache, null=copy.null, out=copy.out_BHV)
        torch.cuda.synchronize()
    except Exception as e:
        return f"{candidate}: {type(e).__name__}: {e}"[:300]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=3.0, help="stop after this long, with what there is")
    parser.add_argument("--out", type=Path, help="rows as JSON Lines")
    parser.add_argument("--quick", action="store_true", help="fewer candidates")
    parser.add_argument("--jobs", type=int, default=14)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("tune: needs a CUDA GPU\n")
        return 2
    began = time.monotonic()
    work = [(case, c) for case in SHAPES for c in candidates(case, args.quick)]
    variants: dict[tuple[object, ...], tuple[Case, Candidate]] = {}
    for case, c in work:
        block = c.partitions if case.tail else 0
        shape = (case.kinds, case.sem, case.val, case.heads // case.kv_heads, case.null, case.tail, block)
        key = (*shape, replace(c, partitions=min(64, 1 << c.partitions.bit_length())))
        variants.setdefault(key, (case, c))
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for said in pool.map(compile_one, *zip(*variants.values(), strict=True)):
            if said:
                print("compile:", said)
    print(f"{len(variants)} kernels compiled in {time.monotonic() - began:.0f} s", flush=True)
    device, best = torch.device("cuda"), []
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    for case, group in itertools.groupby(work, key=lambda w: w[0]):
        copies = [make_copy(case, device, s) for s in range(rotation(case.cache_bytes, l2, most_bytes=3 * 2**30))]
        rows = []
        for _, candidate in group:
            if time.monotonic() - began > 60 * args.minutes:
                print("out of time at", case.name, candidate)
                break
            row = measure(case, candidate, copies)
            rows.append(row)
            if args.out:
                with args.out.open("a") as f:
                    f.write(json.dumps(row) + "\n")
        del copies
        torch.cuda.empty_cache()
        limit = case.cache_bytes / READ_TBS / 1e6
        for row in rows:
            wrong = "" if row.get("ok") else f"WRONG {row['err']:.2g} of {row['tol']:.2g}" if "err" in row else "?"
            us, decode = row.get("us", "-"), row.get("decode_us", "-")
            print(f"{case.name:44} {row['candidate']:22} {us:>7} decode {decode:>7} {row.get('error', wrong)}")
        if timed := [r for r in rows if "us" in r]:
            top = min(timed, key=lambda r: float(r["us"]))
            share = f"{limit / top['us']:.0%} of limit, error {top['err']:.2g} of {top['tol']:.2g}"
            best.append(f"{case.name:44} {top['candidate']:22} {top['us']:>7} us, {share}")
    print("\n".join(["best:", *best]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
