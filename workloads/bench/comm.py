"""Suite `comm`: all-reduce between the GPUs of this rank over NCCL, or between two processes over gloo on the CPU.

One process a GPU is started for the whole sweep, by this one, which waits for all of them and ends them: one that
fails or hangs ends the sweep after LIMIT_S. They die with this process, however it dies. One GPU has nobody to talk
to: the suite has no case there. Bus bandwidth is what every link carries whatever the number of ranks:
2 (n - 1) / n x bytes / time. Called by `workloads.bench.matrix`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kernels.bench.rows import Measured
from kernels.bench.timing import summary
from workloads.bench.commrank import Order, Sample
from workloads.bench.healthy import model_of

if TYPE_CHECKING:
    from workloads.bench.suites import Context

KIB, MIB = 1 << 10, 1 << 20
SIZES = (KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
QUICK = (KIB, 256 * KIB, 64 * MIB)
ON_CPU = (KIB, 256 * KIB, 4 * MIB)
CPU_RANKS = 2
LIMIT_S = 180.0
POLL_S = 0.02
MAX_SAID = 300
Samples = dict[int, Sample]


@dataclass(frozen=True)
class Case:
    backend: str  # nccl, gloo
    ranks: int
    bytes: int

    @property
    def name(self) -> str:
        size = f"{self.bytes // MIB} MiB" if self.bytes >= MIB else f"{self.bytes // KIB} KiB"
        return f"all-reduce {size}, {self.ranks} x {self.backend}"


def cases(device: torch.device, *, quick: bool = False) -> Sequence[Case]:
    """None where there is one GPU."""
    if device.type != "cuda":
        return [Case("gloo", CPU_RANKS, size) for size in ON_CPU]
    ranks = torch.cuda.device_count()
    return [Case("nccl", ranks, size) for size in (QUICK if quick else SIZES)] if ranks > 1 else []


def measure(case: Case, context: Context) -> Measured:
    """The row of one size; the first one measures all. RuntimeError when the processes did not come to an end."""
    if "comm" not in context.kept:
        sizes = [c.bytes for c in cases(context.device, quick=context.quick)]
        try:
            context.kept["comm"] = sweep(case.backend, case.ranks, sizes)
        except RuntimeError as e:
            context.kept["comm"] = e
    found: Samples | RuntimeError = context.kept["comm"]
    if isinstance(found, RuntimeError):
        raise found
    return row_of(case, found[case.bytes], "" if case.backend == "gloo" else torch.cuda.get_device_name(context.device))


def row_of(case: Case, sample: Sample, gpu: str) -> Measured:
    """`limit_us`: at the one-way peak of the GPU's links, where they are known."""
    timing = summary(sample.us, sample.count, "wall" if case.backend == "gloo" else "events", "hot")
    moved = 2 * (case.ranks - 1) / case.ranks * case.bytes
    model = model_of(gpu)
    limit_us = moved / model.peers / 1e3 if model and model.peers else math.nan
    bus_gbs = moved / timing.us / 1e3
    extra = {
        "value": bus_gbs, "unit": "GB/s", "bus_gbs": bus_gbs, "algo_gbs": case.bytes / timing.us / 1e3,
        "ranks": case.ranks, "backend": case.backend, "told": f"bus {bus_gbs:.3g} GB/s",
    }  # fmt: skip
    shape = {"bytes": case.bytes, "ranks": case.ranks}
    if not sample.right:
        return Measured(case.name, shape, "fp32", case.bytes, limit_us, "wrong", extra={"error": "the sum is wrong"})
    return Measured(case.name, shape, "fp32", case.bytes, limit_us, "ok", timing=timing, extra=extra)


def sweep(backend: str, ranks: int, sizes: Sequence[int], *, limit_s: float = LIMIT_S) -> Samples:
    """Every size, by that many processes. RuntimeError with what the first one that failed said."""
    with tempfile.TemporaryDirectory(prefix="orch-comm-") as folder:
        order = Order(backend, ranks, tuple(sizes), folder, os.getpid())
        crew = [_start(order, rank) for rank in range(ranks)]
        try:
            _wait(crew, Path(folder), limit_s)
        finally:
            _end(crew)
        rows = [json.loads(line) for line in (Path(folder) / "rank0.out").read_text().splitlines()]
    found = {int(row["bytes"]): Sample(row["us"], row["count"], row["right"]) for row in rows}
    if missing := set(sizes) - set(found):
        raise RuntimeError(f"no answer for {len(missing)} of {len(sizes)} sizes")
    return found


def _start(order: Order, rank: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("ORCH_RUN_DIR", None)  # a child of a rank is none
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # one machine: they find each other over loopback
        env.setdefault(name, "lo")
    argv = [sys.executable, "-P", "-m", "workloads.bench.commrank", order.as_json(), str(rank)]
    folder = Path(order.folder)
    with (folder / f"rank{rank}.out").open("wb") as out, (folder / f"rank{rank}.err").open("wb") as err:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)


def _wait(crew: Sequence[subprocess.Popen[bytes]], folder: Path, limit_s: float) -> None:
    """Until all have ended well. RuntimeError at the first that did not, or when the time is over."""
    deadline = time.monotonic() + limit_s
    while True:
        codes = [p.poll() for p in crew]
        bad = next((rank for rank, code in enumerate(codes) if code), None)
        if bad is not None:
            said = (folder / f"rank{bad}.err").read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise RuntimeError(f"rank {bad} ended with exit code {codes[bad]} and said: {said[0][:MAX_SAID]}")
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            late = [str(rank) for rank, code in enumerate(codes) if code is None]
            raise RuntimeError(f"rank {', '.join(late)} of {len(crew)} did not end within {limit_s:.0f} s")
        time.sleep(POLL_S)


def _end(crew: Sequence[subprocess.Popen[bytes]]) -> None:
    """Nobody is left, and nobody is left unwaited for."""
    for process in crew:
        process.kill()
    for process in crew:
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the driver: it dies when that lets go of it
            process.wait(10)
