"""The work that `gpuprobe` times: matmuls that are checked and kept up, copies between GPUs; asking clocks meanwhile.

No figure is judged here. Called by `workloads.bench.gpuprobe` with the device of the case as the current one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels.bench.timing import Launch, Timing, graph_time, summary
from workloads.bench import smi

CHUNK_US = 50_000.0
WARM_S = 0.3  # clocks settle
LONGEST_S = 6.0  # a slow nvidia-smi is not waited for under load
CHECKED_ROWS = 16


@dataclass(frozen=True)
class Matmul:
    """timing: kept up for a second or so; burst: a few launches on a GPU that was idle; load: its state meanwhile."""

    timing: Timing
    burst: Timing
    err: float
    tol: float
    load: smi.GpuState | None


def uuid_of(gpu: int) -> str:
    """As nvidia-smi says it; "" where torch does not tell."""
    found = str(getattr(torch.cuda.get_device_properties(gpu), "uuid", ""))
    return found if not found or found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"


def matmul(n: int, dtype: torch.dtype, device: torch.device, seed: int, kept_up_s: float) -> Matmul:
    """[n, n] @ [n, n] of random normal numbers, fp32 without TF32 whatever the container says.

    err, tol: of some rows against fp64; err is infinite when two runs differ in a bit.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return _matmul(n, dtype, device, seed, kept_up_s)
    finally:
        torch.set_float32_matmul_precision(before)


def _matmul(n: int, dtype: torch.dtype, device: torch.device, seed: int, kept_up_s: float) -> Matmul:
    random = torch.Generator(device=device).manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, n, dtype=dtype, device=device, generator=random)

    pairs = [(normal(), normal()) for _ in range(2)]
    outs = [torch.full((n, n), float("nan"), dtype=dtype, device=device) for _ in pairs]

    def launcher(i: int) -> Launch:
        (a, b), out = pairs[i], outs[i]
        return lambda: torch.mm(a, b, out=out)

    launcher(0)()
    first, (err, tol) = outs[0].clone(), _error(*pairs[0], outs[0])
    burst = graph_time(launcher, len(pairs), device=device, replays=5)
    if device.type != "cuda":
        return Matmul(burst, burst, err, tol, None)
    timing, answer = _kept_up([launcher(i) for i in range(len(pairs))], burst.us, kept_up_s)
    launcher(0)()
    if not torch.equal(first, outs[0]):
        err = float("inf")
    load = smi.of_uuid(answer, uuid_of(device.index or 0))
    return Matmul(timing, burst, err, tol, load)


def _error(a: Tensor, b: Tensor, out: Tensor) -> tuple[float, float]:
    """The largest error of some rows, and what the rounding of dtype and sums allows."""
    rows = torch.linspace(0, out.shape[0] - 1, CHECKED_ROWS, device=out.device).long()
    ref64 = a[rows].double() @ b.double()
    unit = torch.finfo(out.dtype).eps
    tol = float(ref64.abs().max()) * (2 * unit + out.shape[0] * torch.finfo(torch.float32).eps)
    return float((out[rows].double() - ref64).abs().nan_to_num(float("inf")).max()), tol


def _kept_up(launches: list[Launch], launch_us: float, seconds: float) -> tuple[Timing, smi.Answer]:
    """The same work without a pause for `seconds`, and until nvidia-smi has answered in the middle of it."""
    chunk = len(launches) * max(1, round(CHUNK_US / launch_us / len(launches)))
    marks = [_mark()]
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        asked = None
        while True:
            for i in range(chunk):
                launches[i % len(launches)]()
            marks.append(_mark())
            marks[max(0, len(marks) - 3)].synchronize()  # two chunks ahead of the GPU, no more
            gone = time.perf_counter() - began
            if asked is None and gone >= WARM_S:
                asked = pool.submit(smi.ask, thorough=False)
            if asked is not None and gone >= seconds and (asked.done() or gone >= LONGEST_S):
                break
        marks[-1].synchronize()
        answer = asked.result() if asked.done() else smi.Answer(error="nvidia-smi was too slow")
    settled = marks[1:] if len(marks) > 2 else marks
    samples = [1e3 * float(a.elapsed_time(b)) / chunk for a, b in pairwise(settled)]
    return summary(samples, chunk, "events", "rotated"), answer


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def asked_during(launch: Callable[[], object]) -> smi.Answer:
    """What nvidia-smi says while `launch` is repeated: an idle GPU lets its link sleep."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(smi.ask, thorough=False)
        began = time.perf_counter()
        while not asked.done() and time.perf_counter() - began < LONGEST_S:
            launch()
            torch.cuda.synchronize()
        return asked.result() if asked.done() else smi.Answer(error="nvidia-smi was too slow")


def peer_copy(source: torch.device, target: torch.device, size: int, replays: int) -> Timing:
    """Time of a copy of `size` bytes to another GPU. RuntimeError when other bytes arrive."""
    x = torch.randint(0, 256, (size,), dtype=torch.uint8, device=source)
    y = torch.zeros(size, dtype=torch.uint8, device=target)
    y.copy_(x, non_blocking=True)
    torch.cuda.synchronize(target)
    torch.cuda.synchronize(source)
    if not torch.equal(x[::4097].cpu(), y[::4097].cpu()):
        raise RuntimeError(f"bytes copied from {source} to {target} are not the same there")
    samples = []
    for _ in range(replays):
        start = _mark()
        for _ in range(4):
            y.copy_(x, non_blocking=True)
        end = _mark()
        end.synchronize()
        samples.append(1e3 * float(start.elapsed_time(end)) / 4)
    return summary(samples, 4, "events", "rotated")
