"""What a decode run computes on: device, number format, and everything that its answers and times depend on.

On CUDA the memory's read bandwidth is measured first, while nothing else is held: it is the limit that every turn is
compared with. On the CPU there is no such figure. Called by `workloads.decode.__main__`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import device as Device
from torch import dtype as DType

from workloads.contract.errors import LocalError, SpecError
from workloads.contract.files import dump_json
from workloads.decode.config import DecodeConfig
from workloads.judging.machine import hash_of, smi, version

NONE = "-"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Place:
    """`gpu`, `driver`: as nvidia-smi names them. `code`, `workloads`: hashes of the two packages that compute."""

    device: Device
    gpu: str
    driver: str
    torch: str
    triton: str
    python: str
    code: str
    workloads: str
    read_tbs: float | None  # 1e12 bytes a second, measured; None on the CPU

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def environment(self) -> dict[str, str]:
        told = {k: v for k, v in vars(self).items() if k not in ("device", "read_tbs")}
        return {"device": self.device.type, **told}

    def dtype(self, asked: str, held: DType) -> DType:
        """`auto`: what the weights are held in, but bf16 for fp32 on CUDA and fp32 on the CPU."""
        if asked != "auto":
            return DTYPES[asked]
        if not self.cuda:
            return torch.float32
        return torch.bfloat16 if held == torch.float32 else held


def take_place(config: DecodeConfig) -> Place:
    """The place that the job asks for. SpecError when it is not there, LocalError without what it needs."""
    on_gpu = config.asked.device != "cpu" and torch.cuda.is_available()
    if config.asked.device == "cuda" and not on_gpu:
        raise SpecError(
            "E-DECODE-004", "decoding was asked for on a GPU, and torch finds none",
            where="decode.device", value=f"torch {torch.__version__}", fix="orch decode --device cpu",
        )  # fmt: skip
    if on_gpu and not version("triton"):
        raise LocalError(
            "E-DECODE-005", "triton is not installed for this Python: the caches have no kernels",
            where=sys.executable, fix=f"{sys.executable} -m pip install triton",
        )  # fmt: skip
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined, which has not happened yet

    import kernels
    import workloads

    gpu, driver = smi(torch.cuda.get_device_name(0)) if on_gpu else ("cpu", NONE)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    return Place(
        device, gpu, driver, version("torch"), version("triton") or NONE, platform.python_version(),
        hash_of(kernels), hash_of(workloads), _read_bandwidth(device) if on_gpu else None,
    )  # fmt: skip


def _read_bandwidth(device: torch.device) -> float:
    from kernels.bench.probe import measure

    found = measure(device, quick=True).read_tbs
    torch.cuda.empty_cache()  # the pool that was read
    return found


def basis(config: DecodeConfig, place: Place, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Turns made with the same basis may stand beside each other."""
    asked = config.asked.model_dump(mode="json", exclude={"prompts"})
    prompts = hashlib.sha256(dump_json(config.conversations)).hexdigest()
    return {"v": 1, "decode": asked, "prompts": prompts, "weights": dict(weights), **place.environment()}
