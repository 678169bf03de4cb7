"""What a kernel needs to know of the machine: the interpreter or a GPU, how many multiprocessors.

Never imports triton itself: the public functions of a family run (through their reference) where it is not installed.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

OLDEST = (8, 0)
"""The compute capability that Triton supports at least."""


def interpreted() -> bool:
    """True when Triton runs kernels in Python on the CPU (TRITON_INTERPRET=1, set before a kernel is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def runs_triton(tensor: Tensor) -> bool:
    """True when a Triton kernel can take this tensor: on CUDA, or anywhere under the interpreter."""
    return tensor.is_cuda or interpreted()


@functools.lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 4 under the interpreter, so that small shapes split there too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.lru_cache(maxsize=64)
def gpu_name(device: torch.device) -> str | None:
    """The model as torch names it ("NVIDIA H200"); None without a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@functools.lru_cache(maxsize=64)
def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability, (9, 0) for SM 9.0; None without a GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def too_old(device: torch.device) -> str:
    """Why Triton does not run on this GPU at all; "" where it does, or where there is none."""
    found = capability(device)
    if found is None or found >= OLDEST:
        return ""
    return f"{gpu_name(device)} is SM {found[0]}.{found[1]}, and Triton needs {OLDEST[0]}.{OLDEST[1]}"


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
