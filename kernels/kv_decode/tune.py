"""Which variant is fastest, measured: `python -m kernels.kv_decode.tune --minutes 3 --out F` on a CUDA machine.

Compiles every candidate in parallel processes, checks each against fp64 on the very inputs that are timed (a wrong one
is never timed), times it in a CUDA graph over inputs rotated past the L2, and prints the best of each shape last. What
it finds is copied by hand into the table of `config.py`. Never run by tests or by users' calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from kernels.bench.dense import Case, Copy, launcher, make_copy, reference
from kernels.bench.peers import sdpa
from kernels.bench.timing import graph_time, rotation
from kernels.checks import judge
from kernels.device import multiprocessors
from kernels.kv_decode.config import Config
from kernels.kv_decode.launch import Call, arguments, make_scratch, tiles_of
from kernels.kv_decode.plan import DecodePlan

GROUPS: dict[str, tuple[Case, ...]] = {
    "mha64": tuple(Case(16, 8, 8, 64, s) for s in (2048, 8192, 128, 512, 32768)),
    "gqa4": (Case(1, 32, 8, 128, 4096), Case(1, 32, 8, 128, 32768), Case(1, 32, 8, 128, 131072)),
    "gqa4-full": (Case(16, 32, 8, 128, 8192),),
    "gqa16": (Case(16, 64, 4, 128, 65536),),
}
KEEP = 16  # candidates that go on from the first two shapes of a group to the others
Candidate = tuple[Config, int]


def candidates(group: str) -> Iterator[Candidate]:
    """Variants and numbers of splits that are worth the time of a group's shapes."""
    if group == "mha64":
        for (n, w), stages, pdl, splits in itertools.product(((64, 4), (128, 4), (128, 8)), (3, 4, 5), (0, 2), (1, 2)):
            yield Config("one", 1, n, w, stages, pdl), splits
        for stages, splits in itertools.product((3, 4), (1, 2)):
            yield Config("dot", 16, 128, 4, stages), splits
        return
    splits_of = {"gqa4": (16, 32), "gqa4-full": (1, 2), "gqa16": (2, 4)}[group]
    for (n, stages), pdl, splits in itertools.product(((32, 5), (64, 3), (64, 5), (128, 3)), (0, 1, 2), splits_of):
        yield Config("dot", 16, n, 4, stages, pdl), splits


def compile_one(job: tuple[Case, Config, int]) -> str:
    """Compile a candidate into Triton's cache on disk; returns an error, or nothing."""
    from kernels.kv_decode.triton_split import split_kernel

    case, config, splits = job

    def meta(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, new = meta(case.batch, case.heads, 1, case.dim), meta(case.batch, case.kv_heads, 1, case.dim)
    cache = meta(case.batch, case.kv_heads, case.length + 64, case.dim)
    call = Call(q, cache, cache, (new, new), meta(case.batch, dtype=torch.int32), q, None, 0.125, True, True)
    tiles = tiles_of(config, case.batch, case.kv_heads, case.heads // case.kv_heads)
    args, consts = arguments(call, config, splits, make_scratch(config, splits, tiles, case.dim, q.device))
    try:
        split_kernel.warmup(*args, grid=(1,), **consts)
    except Exception as e:  # a candidate that does not compile is left out, and said
        return f"{type(e).__name__}: {str(e)[-200:]}"
    return ""


def measure(case: Case, todo: list[Candidate], deadline: float, out: list[dict[str, object]]) -> list[Candidate]:
    """Rows of `out` for every candidate, checked and timed; returns them fastest first."""
    device = torch.device("cuda", torch.cuda.current_device())
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    count = rotation(case.cache_bytes, l2, most_bytes=16 << 30)
    copies: list[Copy] = [make_copy(case, device, seed) for seed in range(count)]
    step = make_copy(case, device, 0).filled(case)
    ref64, peer = reference(step), sdpa(step)
    del step
    timed: list[tuple[float, Candidate]] = []
    for config, splits in todo:
        if time.monotonic() > deadline:
            break
        row: dict[str, object] = {"case": case.name, "config": str(config), "splits": splits}
        try:
            plan = DecodePlan(
                case.batch, case.heads, case.kv_heads, case.dim, case.length + 64, dtype=case.dtype, device=device,
                splits=splits, config=config,
            )  # fmt: skip
            copies[0].out_BHSD.fill_(float("nan"))
            launcher(plan, copies[0])()
            verdict = judge(copies[0].out_BHSD, ref64, peer)
            row["err"] = verdict.err
            if verdict.ok:
                us = graph_time(lambda i, p=plan: launcher(p, copies[i]), count, device=device, replays=9).us  # type: ignore[misc]
                row |= {"us": us, "tbs": case.cache_bytes / us / 1e6}
                timed.append((us, (config, splits)))
            else:
                row["verdict"] = "wrong"
        except Exception as e:  # too much shared memory, say: the next one may run
            row["error"] = f"{type(e).__name__}: {str(e)[:200]}"
        out.append(row)
    timed.sort(key=lambda pair: pair[0])
    return [candidate for _, candidate in timed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines, one a candidate and shape")
    parser.add_argument("--groups", nargs="*", choices=sorted(GROUPS), default=sorted(GROUPS))
    options = parser.parse_args()
    start = time.monotonic()
    deadline = start + 60 * options.minutes
    jobs = [(GROUPS[name][0], *candidate) for name in options.groups for candidate in candidates(name)]
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        errors = list(pool.map(compile_one, jobs))
    for job, error in zip(jobs, errors, strict=True):
        if error:
            print(f"does not compile: {job[1]} splits {job[2]}: {error}")
    print(f"{len(jobs)} compiled in {time.monotonic() - start:.0f} s", flush=True)
    rows: list[dict[str, object]] = []
    for name in options.groups:
        todo = list(candidates(name))
        cut: set[Candidate] = set()
        for i, case in enumerate(GROUPS[name]):
            ranked = measure(case, todo, deadline, rows)
            if i < 2:
                cut |= set(ranked[: KEEP // 2])
            if i == 1:
                todo = [candidate for candidate in todo if candidate in cut]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(rows)
    print(f"{multiprocessors(torch.device('cuda'))} multiprocessors, {time.monotonic() - start:.0f} s")
    return 0


def report(rows: list[dict[str, object]]) -> None:
    bad = [row for row in rows if "us" not in row]
    print(f"{len(rows)} measured, {len(bad)} not: {sorted({str(r.get('error', r.get('verdict')))[:90] for r in bad})}")
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        best = sorted(((float(str(r["us"])), r) for r in rows if r["case"] == case and "us" in r), key=lambda p: p[0])[
            :7
        ]
        print(case)
        for us, row in best:
            print(f"  {us:8.2f} us {float(str(row['tbs'])):5.2f} TB/s  splits {row['splits']:3}  {row['config']}")


if __name__ == "__main__":
    raise SystemExit(main())
