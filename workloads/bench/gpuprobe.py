"""Suite `device`: what every GPU of this rank really does, in seconds each, beside what its model does when healthy.

Memory read and copied, bf16 and fp32 matmuls (checked, then kept up for a second, clocks asked meanwhile), pinned host
memory both ways, GPU to GPU. A figure that is too low is a row with goal "missed" and its likely causes; only a wrong
answer is a bad row. Without a GPU: the CPU's memory and matmul, held against nothing. Called by
`workloads.bench.matrix`; `orch gpu` makes its page from these rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from kernels.bench import probe
from kernels.bench.goals import Goal
from kernels.bench.probe import MIB, Bandwidth
from kernels.bench.rows import Measured
from kernels.bench.timing import Timing, graph_time
from workloads.bench import gpuload, smi
from workloads.bench.healthy import causes, reference

if TYPE_CHECKING:
    from workloads.bench.suites import Context

NAME = "device"
TITLES = {
    "read": "memory read", "copy": "memory copy", "bf16": "bf16 matmul", "fp32": "fp32 matmul",
    "to-device": "host to GPU", "from-device": "GPU to host", "peers": "to the other GPUs",
}  # fmt: skip
UNITS = {
    "read": "TB/s", "copy": "TB/s", "bf16": "TFLOP/s", "fp32": "TFLOP/s",
    "to-device": "GB/s", "from-device": "GB/s", "peers": "GB/s",
}  # fmt: skip
ON_CPU = ("read", "copy", "fp32")
PINNED_MIB = 256


@dataclass(frozen=True)
class Case:
    figure: str
    gpu: int | None  # as torch counts them; None: the CPU

    @property
    def name(self) -> str:
        return f"{'cpu' if self.gpu is None else f'gpu{self.gpu}'} {TITLES[self.figure]}"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.gpu is None else torch.device("cuda", self.gpu)


@dataclass(frozen=True)
class Value:
    """A figure in its unit, as it was found. `load`: the GPU's state in the middle of the work."""

    value: float
    timing: Timing
    bytes: int
    shape: dict[str, int]
    dtype: str
    err: float | None = None
    tol: float | None = None
    load: smi.GpuState | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # seen on the way, and a cause where the figure is low


def cases(device: torch.device, *, quick: bool = False) -> Sequence[Case]:
    """Every figure of every GPU that this process sees (bf16 from SM 8.0 on); of the CPU where `device` is that."""
    del quick
    if device.type != "cuda":
        return [Case(figure, None) for figure in ON_CPU]
    count = torch.cuda.device_count()
    figures = [f for f in TITLES if f != "peers" or count > 1]
    old = {gpu for gpu in range(count) if torch.cuda.get_device_capability(gpu) < (8, 0)}
    return [Case(f, gpu) for gpu in range(count) for f in figures if not (f == "bf16" and gpu in old)]


def measure(case: Case, context: Context) -> Measured:
    """The row of one figure. What a GPU raises (no memory left, a fault) is its caller's to tell."""
    state = _state(case, context)
    with torch.inference_mode():
        if case.gpu is None:
            found = _MEASURES[case.figure](case, context)
        else:
            with torch.cuda.device(case.gpu):
                found = _MEASURES[case.figure](case, context)
    return judged(case, found, state)


def judged(case: Case, found: Value, state: smi.GpuState | None) -> Measured:
    """The row: the figure beside its reference, and what may hold it back where it is below."""
    name = "" if case.gpu is None else state.name if state else torch.cuda.get_device_name(case.gpu)
    known = reference(case.figure, name)
    unit, scale = (UNITS[case.figure], 1) if case.gpu is not None else (UNITS[case.figure].replace("T", "G", 1), 1000)
    extra: dict[str, Any] = {
        "figure": case.figure, "gpu": case.gpu, "gpu_name": name or "CPU", "value": found.value * scale, "unit": unit,
        "expected": known.value if known else None, "floor": known.floor if known else None,
        "basis": known.basis if known else None, "said": "no reference", "causes": [], **found.extra,
        **({"state": state.as_dict()} if state and case.figure == "read" else {}),
        **({"load": found.load.as_dict()} if found.load else {}),
    }  # fmt: skip
    goal, limit_us = Goal(), math.nan
    if known:
        us = found.timing.us
        limit_us = us * found.value / known.value
        goal = Goal(us * found.value / known.floor, limit_us)
        low = found.value < known.floor
        extra["said"] = "below" if low else "as expected"
        extra["causes"] = [*found.notes, *causes(case.figure, name, state, found.load)] if low else []
    extra["told"] = f"{extra['value']:.4g} {unit}, {extra['said']}"
    right = found.err is None or (found.tol is not None and found.err <= found.tol)
    return Measured(
        case.name, found.shape, found.dtype, found.bytes, limit_us, "ok" if right else "wrong",
        timing=found.timing if right else None, err=found.err, tol=found.tol, goal=goal, extra=extra,
    )  # fmt: skip


def _state(case: Case, context: Context) -> smi.GpuState | None:
    """What nvidia-smi said of this GPU before the first case of this process."""
    if case.gpu is None:
        return None
    if "smi" not in context.kept:
        context.kept["smi"] = smi.ask()
    return smi.of_uuid(context.kept["smi"], gpuload.uuid_of(case.gpu))


def _bandwidth(case: Case, context: Context) -> Bandwidth:
    """Of this GPU; that of the run's own device was probed before anything else."""
    if case.device == context.device:
        return context.found
    key = f"bandwidth {case.gpu}"
    if key not in context.kept:
        context.kept[key] = probe.measure(case.device, quick=True)
    found: Bandwidth = context.kept[key]
    return found


def _read(case: Case, context: Context) -> Value:
    found = _bandwidth(case, context)
    mib, timing = min(found.reads[-2:], key=lambda r: r[1].us / r[0])
    return Value(found.read_tbs, timing, mib * MIB, {"bytes": mib * MIB}, "int32")


def _copy(case: Case, context: Context) -> Value:
    found = _bandwidth(case, context)
    size = found.reads[-1][0] * MIB
    return Value(found.copy_tbs, found.copy, size, {"bytes": size}, "int32")


def _bf16(case: Case, context: Context) -> Value:
    return _matmul(case, context, torch.bfloat16, "bf16", 8192)


def _fp32(case: Case, context: Context) -> Value:
    return _matmul(case, context, torch.float32, "fp32", 512 if case.gpu is None else 4096)


def _matmul(case: Case, context: Context, dtype: torch.dtype, word: str, n: int) -> Value:
    found = gpuload.matmul(n, dtype, case.device, context.seed, 0.3 if context.quick else 1.0)
    tflops = 2 * n**3 / found.timing.us / 1e6
    size = 3 * n * n * dtype.itemsize
    extra = {"burst": 2 * n**3 / found.burst.us / 1e6}
    return Value(tflops, found.timing, size, {"M": n, "N": n, "K": n}, word, found.err, found.tol, found.load, extra)


def _host(case: Case, context: Context, *, to_device: bool) -> Value:
    """Pinned host memory, one way."""
    size = PINNED_MIB * MIB
    near = torch.empty(size, dtype=torch.uint8, pin_memory=True).fill_(7)
    far = torch.full((size,), 3, dtype=torch.uint8, device=case.device)
    target, source = (far, near) if to_device else (near, far)
    timing = graph_time(
        lambda _: lambda: target.copy_(source, non_blocking=True), 1, device=case.device, replays=context.replays
    )
    wrong = int((far[:: 4096 + 1].cpu() != near[:: 4096 + 1]).sum())
    load = smi.of_uuid(
        gpuload.asked_during(lambda: target.copy_(source, non_blocking=True)), gpuload.uuid_of(case.gpu or 0)
    )
    return Value(size / timing.us / 1e3, timing, size, {"bytes": size}, "uint8", float(wrong), 0.0, load)


def _peers(case: Case, context: Context) -> Value:
    """To every other GPU in turn; the slowest one counts."""
    found = {
        other: gpuload.peer_copy(case.device, torch.device("cuda", other), PINNED_MIB * MIB, context.replays)
        for other in range(torch.cuda.device_count())
        if other != case.gpu
    }
    far = [f"gpu{other}" for other in found if not torch.cuda.can_device_access_peer(case.device, other)]
    size = PINNED_MIB * MIB
    slowest = max(found.values(), key=lambda t: t.us)
    extra = {"to": {f"gpu{o}": float(f"{size / t.us / 1e3:.4g}") for o, t in found.items()}}
    notes = (f"{', '.join(far)} can be reached only through the host's memory",) if far else ()
    return Value(size / slowest.us / 1e3, slowest, size, {"bytes": size}, "uint8", extra=extra, notes=notes)


_MEASURES: dict[str, Callable[[Case, Context], Value]] = {
    "read": _read, "copy": _copy, "bf16": _bf16, "fp32": _fp32, "peers": _peers,
    "to-device": lambda case, context: _host(case, context, to_device=True),
    "from-device": lambda case, context: _host(case, context, to_device=False),
}  # fmt: skip
