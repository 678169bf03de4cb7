"""Whether the Triton kernels or the reference answer, and what a GPU must do without.

What is asked for (`backend=`, else KERNELS_BACKEND) is done. Then the kernels, wherever Triton runs: no thresholds file
is read, since PyTorch's SDPA cannot read a quantized cache and the bench times no other rival for one. What is not the
usual way is said once a process. Launches nothing. Called by `api`, `cache` and `plan`.
"""

from __future__ import annotations

import os
from typing import Final

import torch
from torch import Tensor

from kernels.device import capability, gpu_name, runs_triton, too_old
from kernels.thresholds import say_once

BACKENDS: Final = ("auto", "triton", "reference")
HOPPER: Final = (9, 0)


def by_triton(tensor: Tensor, backend: str = "auto") -> bool:
    """True for the kernels. ValueError for a backend that this family does not have."""
    forced = os.environ.get("KERNELS_BACKEND") or "auto"
    for name, value in (("backend", backend), ("KERNELS_BACKEND", forced)):
        if value not in BACKENDS:
            raise ValueError(f"{name}={value!r}: it is one of {', '.join(BACKENDS)}")
    asked = forced if backend == "auto" else backend
    if asked != "auto" or not runs_triton(tensor):
        return asked == "triton"
    cannot = too_old(tensor.device)
    if cannot:
        say_once(f"decoupled: the reference instead of Triton: {cannot}; KERNELS_BACKEND=triton tries it anyway")
    return not cannot


def without(device: torch.device) -> str:
    """What the kernels do without on this GPU, and says so once; "" on SM 9.0 and later, and without a GPU."""
    found = capability(device)
    if found is None or found >= HOPPER:
        return ""
    lacks = (
        f"{gpu_name(device)} is SM {found[0]}.{found[1]}: no programmatic dependent launch and no asking the L2 ahead, "
        "which came with SM 9.0"
    )
    say_once(f"decoupled: {lacks}; the kernels run without them, and nobody has timed them so")
    return lacks
