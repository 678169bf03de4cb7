"""What the cells are judged on: a GPU, or Triton's interpreter on the CPU; and everything that an answer depends on.

`take_place` runs before any kernel is imported: Triton reads TRITON_INTERPRET when a kernel is defined. Called by
`workloads.parity.__main__`.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

from workloads.contract.errors import LocalError, SpecError
from workloads.judging.machine import hash_of, smi, version
from workloads.parity.config import ParityConfig

INTERPRETER = "interpreter"
NO_DRIVER = "-"


@dataclass(frozen=True)
class Place:
    """`gpu` and `driver` as nvidia-smi names them, so that a plan finds the same words; `code`: hash of kernels/."""

    device: str  # cuda, cpu
    gpu: str
    driver: str
    torch: str
    triton: str
    python: str
    code: str

    def basis(self, config: ParityConfig) -> dict[str, Any]:
        """Rows made with the same basis may stand beside each other."""
        return {"v": 1, "seed": config.asked.seed, **self.environment()}

    def environment(self) -> dict[str, str]:
        return dict(vars(self))


def take_place(config: ParityConfig) -> Place:
    """The place that the job asks for. SpecError when it is not there, LocalError when nothing can be judged here."""
    triton = version("triton")
    if not triton:
        raise LocalError(
            "E-PARITY-003", "triton is not installed for this Python: there is nothing to hold to the reference",
            where=sys.executable, fix=f"{sys.executable} -m pip install triton",
        )  # fmt: skip
    forced = os.environ.get("KERNELS_BACKEND", "auto")
    if forced not in ("", "auto", "triton"):
        raise SpecError(
            "E-PARITY-004", "KERNELS_BACKEND keeps the kernels from being run", where="env.KERNELS_BACKEND",
            value=forced, expected="triton, or none", fix="remove it from the job's `env`",
        )  # fmt: skip
    import torch

    on_gpu = config.asked.device != "cpu" and torch.cuda.is_available()
    if config.asked.device == "cuda" and not on_gpu:
        raise SpecError(
            "E-PARITY-005", "parity was asked for on a GPU, and torch finds none",
            where="parity.device", value=f"torch {torch.__version__}", fix="orch parity --device cpu",
        )  # fmt: skip
    gpu, driver = (INTERPRETER, NO_DRIVER) if not on_gpu else smi(torch.cuda.get_device_name(0))
    if on_gpu:
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"
    import kernels

    return Place(
        "cuda" if on_gpu else "cpu", gpu, driver, version("torch"), triton, platform.python_version(), hash_of(kernels)
    )
