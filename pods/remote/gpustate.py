"""What was told of the GPUs of a machine. Pure data; filled by `gpueye` and `gpusmi`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GpuProcess:
    pid: int  # as the driver knows it: of the machine, not of a container
    used_mib: float | None  # None: not told


@dataclass(frozen=True)
class GpuState:
    """`present` None: it could not be asked. None elsewhere: not told by this GPU, driver or container."""

    uuid: str
    present: bool | None = None
    used_mib: float | None = None
    total_mib: float | None = None
    ecc_uncorrected: int | None = None  # since the driver was loaded
    bus: str | None = None  # 0000:18:00
    compute: tuple[GpuProcess, ...] | None = None
    graphics: tuple[GpuProcess, ...] | None = None
    xids: tuple[tuple[float, int], ...] = ()  # (monotonic s at which NVML told it, code); since the first look


@dataclass(frozen=True)
class Gpus:
    """`states` has every GPU that was asked for. `error`: why nothing could be told, or None."""

    states: Mapping[str, GpuState] = field(default_factory=dict)
    error: str | None = None
    blind: bool = False  # nothing on this machine can tell: no library, no nvidia-smi


def bus_key(text: str) -> str | None:
    """`0000:18:00` of 00000000:18:00.0, 0000:18:00 and what else names a place on the bus; None of other text."""
    parts = text.split(".", 1)[0].split(":")
    try:
        domain, bus, device = (int(p, 16) for p in parts)
    except ValueError:
        return None
    return f"{domain:04x}:{bus:02x}:{device:02x}"
