"""Suite `bandwidth`: the probe's own figures as rows, so that every limit of a run can be traced to a measurement.

Called by `kernels.bench` before the other suites; it measures nothing itself.
"""

from __future__ import annotations

from kernels.bench.probe import MIB, Bandwidth
from kernels.bench.rows import Measured


def measured(found: Bandwidth) -> list[Measured]:
    """A row for each size read, one for the copy, one for the empty launch. `ratio` of a short read: what is left of
    the bandwidth when a perfect kernel reads only that much, its launch included."""
    rows = [
        Measured(
            case=f"read {mib} MiB",
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
    rows.append(
        Measured("copy, read + written", {"bytes": size}, "int32", size, found.limit_us(size), "ok", timing=found.copy)
    )
    rows.append(Measured("empty launch in a graph", {}, "-", 0, 0.0, "ok", timing=found.empty))
    return rows
