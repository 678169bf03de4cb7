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
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from kernels.bench.quantized import Case, Copy, check, make_copy
from kernels.bench.timing import graph_time, rotation
from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.plan import DecoupledPlan
from kernels.decoupled.reference import NullToken

READ_TBS = 4.57  # a pure read on one H200: the limit shown beside the times
BASE = Case(16, 8, 8, 32, 32, 64, 2048)
SHAPES = (
    BASE,
    replace(BASE, length=8192),
    replace(BASE, length=32768),
    replace(BASE, length=8192, null=True),
    replace(BASE, length=8192, tail=128),
    replace(BASE, length=8192, kinds="q8q8q8"),
    replace(BASE, length=8192, kinds="fp16"),
    Case(1, 32, 8, 64, 64, 128, 32768),
    Case(64, 8, 8, 32, 32, 64, 2048),
)


@dataclass(frozen=True)
class Candidate:
    passes: int
    partitions: int
    stages: int = 3
    registers: int | None = None
    overlap: bool = True

    def __str__(self) -> str:
        over = "" if self.overlap or self.passes == 1 else " apart"
        return f"{self.passes}p{self.partitions} s{self.stages} r{self.registers or '-'}{over}"


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
                overlap=c.overlap and self.part == "both",
            )  # fmt: skip
        if c.passes == 2 and self.part != "decode":
            triton_reduce.launch(*args, partitions=c.partitions, overlap=c.overlap and self.part == "both")
        return out

    def why(self) -> str:
        return str(self.candidate)


def candidates(case: Case, quick: bool) -> Iterator[Candidate]:
    pairs = case.batch * case.kv_heads
    parts = sorted({max(1, round(132 * n / pairs)) for n in ((8, 10, 12, 16, 20) if not quick else (10, 12))})
    usual = case == replace(BASE, length=case.length)
    for p, stages, registers in itertools.product(parts, (3, 4) if usual else (3,), (None, 168) if usual else (None,)):
        yield Candidate(2, p, stages, registers)
    if usual:
        middle = parts[len(parts) // 2]
        yield Candidate(2, middle, 3, 128)
        yield Candidate(2, middle, 2, None)
        yield Candidate(2, middle, 5, 168)
        yield Candidate(2, middle, 3, None, overlap=False)
    yield Candidate(1, 1)


def measure(case: Case, candidate: Candidate, copies: list[Copy], seconds: float) -> dict[str, object]:
    """One row: verdict first, then microseconds."""
    cache, device = copies[0].cache, copies[0].cache.lengths.device
    row: dict[str, object] = {"case": case.name, "candidate": str(candidate), **asdict(candidate)}
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
        launches = [
            lambda c=c, one=one: one.run(c.q_sem_BHS, c.q_geo_BHG, c.cache, null=c.null, out=c.out_BHV) for c in copies
        ]
        timing = graph_time(lambda i, launches=launches: launches[i], len(copies), device=device, replays=9)
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
    variants = {}
    for case, c in work:
        key = (
            case.kinds,
            case.sem,
            case.val,
            case.heads // case.kv_heads,
            case.null,
            case.tail,
            c.passes,
            c.stages,
            c.registers,
            c.overlap,
        )
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
            row = measure(case, candidate, copies, args.minutes)
            rows.append(row)
            if args.out:
                with args.out.open("a") as f:
                    f.write(json.dumps(row) + "\n")
        del copies
        torch.cuda.empty_cache()
        limit = case.cache_bytes / READ_TBS / 1e6
        for row in rows:
            said = row.get("error") or ("WRONG" if not row["ok"] else "")
            print(
                f"{case.name:44} {row['candidate']:18} {row.get('us', '-'):>8} decode {row.get('decode_us', '-'):>8} {said}"
            )
        timed = [r for r in rows if "us" in r]
        if timed:
            top = min(timed, key=lambda r: float(str(r["us"])))
            best.append(
                f"{case.name:44} {top['candidate']:18} {top['us']:>8} us  {limit / float(str(top['us'])):.0%} of limit  err {top['err']:.2g} of {top['tol']:.2g}"
            )
    print("\n".join(["best:", *best]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
