"""Suite `bandwidth`: the probe's own figures as rows, so that every limit of a run can be traced to a measurement.

Called by `kernels.bench` before the other suites; it measures nothing itself.
"""

from __future__ import annotations

import torch

from kernels.bench.probe import CPU_READ_MIB, MIB, READ_MIB, Bandwidth
from kernels.bench.rows import Measured

COPY, EMPTY = "copy, read + written", "empty launch in a graph"


def names(device: torch.device) -> list[str]:
    """The cases of a device, in the order of `measured`."""
    return [*map(_read, READ_MIB if device.type == "cuda" else CPU_READ_MIB), COPY, EMPTY]


def _read(mib: int) -> str:
    return f"read {mib} MiB"


def measured(found: Bandwidth) -> list[Measured]:
    """A row for each size read, one for the copy, one for the empty launch. `ratio` of a short read: what is left of
    the bandwidth when a perfect kernel reads only that much, its launch included."""
    rows = [
        Measured(
            case=_read(mib),
            shape={"bytes": mib * MIB},
            dtype="int32",
            bytes=mib * MIB,
            limit_us=found.limit_us(mib * MIB),
            verdict="ok",
            timing=timing,
        )
        for mib, timing in found.reads
    ]
    size = found.reads[-1][0] * MIB
    rows.append(Measured(COPY, {"bytes": size}, "int32", size, found.limit_us(size), "ok", timing=found.copy))
    rows.append(Measured(EMPTY, {}, "-", 0, 0.0, "ok", timing=found.empty))
    return rows
