"""What GPUs have, as their data sheets say: for estimates made where no GPU is. Standard library only.

`workloads.bench.healthy` has what healthy cards were measured to do; a test holds the two to each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """`short`: how people call it; `memory_gib`: what torch sees of it; `bf16`: dense TFLOP/s with fp32 sums."""

    name: str  # as nvidia-smi and torch say it
    short: str
    memory_gib: float
    bf16: float


SHEETS = (
    Sheet("NVIDIA H200", "h200", 139.8, 989.4),
    Sheet("NVIDIA H100 80GB HBM3", "h100", 79.1, 989.4),
    Sheet("NVIDIA A100-SXM4-80GB", "a100-80gb", 79.2, 312.0),
    Sheet("NVIDIA A100-SXM4-40GB", "a100-40gb", 39.4, 312.0),
    Sheet("NVIDIA L40S", "l40s", 44.4, 362.05),
    Sheet("NVIDIA GeForce RTX 4090", "4090", 23.5, 165.2),
)


def sheet_of(name: str) -> Sheet | None:
    """By either name, upper or lower case."""
    wanted = name.strip().lower()
    return next((s for s in SHEETS if wanted in (s.short, s.name.lower())), None)
