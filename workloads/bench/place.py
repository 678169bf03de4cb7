"""What the cases are measured on, and everything that a time depends on. Called by `workloads.bench.__main__`.

On the CPU the kernels' references run (Triton's interpreter would time itself), tiny and by wall clock: a test of the
bench, and of nothing else.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

from workloads.bench.config import BenchConfig
from workloads.contract.errors import LocalError, SpecError
from workloads.judging.machine import hash_of, smi, version

NO_DRIVER, NONE = "-", "-"


@dataclass(frozen=True)
class Place:
    """`gpu` and `driver` as nvidia-smi names them; `code`: hash of kernels/, `workloads`: of what drives them."""

    device: str  # cuda, cpu
    gpu: str
    gpus: int
    driver: str
    torch: str
    triton: str
    python: str
    code: str
    workloads: str

    def basis(self, config: BenchConfig) -> dict[str, Any]:
        """Rows made with the same basis may stand beside each other."""
        return {"v": 1, "seed": config.asked.seed, "quick": config.asked.quick, **self.environment()}

    def environment(self) -> dict[str, Any]:
        return dict(vars(self))


def take_place(config: BenchConfig) -> Place:
    """The place that the job asks for. SpecError when it is not there, LocalError when nothing can be timed on it."""
    import torch

    on_gpu = config.asked.device != "cpu" and torch.cuda.is_available()
    if config.asked.device == "cuda" and not on_gpu:
        raise SpecError(
            "E-BENCH-003", "a benchmark was asked for on a GPU, and torch finds none",
            where="bench.device", value=f"torch {torch.__version__}", fix="orch bench --device cpu",
        )  # fmt: skip
    if on_gpu and not version("triton"):
        raise LocalError(
            "E-BENCH-004", "triton is not installed for this Python: neither memory nor kernels can be measured",
            where=sys.executable, fix=f"{sys.executable} -m pip install triton",
        )  # fmt: skip
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["KERNELS_COMMIT"] = config.commit  # a run's tree is no checkout

    import kernels
    import workloads

    gpu, driver = smi(torch.cuda.get_device_name(0)) if on_gpu else ("cpu", NO_DRIVER)
    return Place(
        "cuda" if on_gpu else "cpu", gpu, torch.cuda.device_count() if on_gpu else 0, driver, version("torch"),
        version("triton") or NONE, platform.python_version(), hash_of(kernels), hash_of(workloads),
    )  # fmt: skip
