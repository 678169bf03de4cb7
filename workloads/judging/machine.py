"""What an answer of a rank depends on beside its code: device, driver, installed packages; and the hash of that code.

Imports torch inside functions alone. Called by the `place` of each kind.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from workloads.contract.codehash import code_hash

SMI_S = 30.0
UNKNOWN = "unknown"
_GPU = re.compile(r"^GPU \d+:.*\(UUID: ([^)\s]+)\)", re.MULTILINE)
_LINK = re.compile(r"Link \d+: [1-9][0-9.]* GB/s")


def hash_of(package: ModuleType) -> str:
    """Of the very package that was imported."""
    assert package.__file__ is not None
    return code_hash(Path(package.__file__).parent)


def smi(name: str) -> tuple[str, str]:
    """(model, driver) of the device that this rank leases. `name`: torch's word for it, where nvidia-smi is silent."""
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    which = [f"--id={d}" for d in devices[:1]]
    argv = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", *which]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SMI_S, check=True, text=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return name, UNKNOWN
    model, _, driver = next(iter(done.stdout.splitlines()), "").rpartition(",")
    return (model.strip(), driver.strip()) if model and driver.strip() else (name, UNKNOWN)


def nvlink() -> bool:
    """Whether NVLink is up on every device that this rank leases. False where nvidia-smi does not tell."""
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    argv = ["nvidia-smi", "nvlink", "--status"]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SMI_S, check=True, text=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return nvlinked(done.stdout, devices)


def nvlinked(status: str, uuids: Sequence[str]) -> bool:
    """`status`: what `nvidia-smi nvlink --status` prints. No uuids: all devices that it names."""
    _, *parts = _GPU.split(status)
    up = {uuid: _LINK.search(links) is not None for uuid, links in zip(parts[::2], parts[1::2], strict=True)}
    return bool(up) and all(up.get(uuid, False) for uuid in uuids or up)


def version(package: str) -> str:
    """ "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def device_answers() -> bool:
    """Whether CUDA still serves this process. An illegal access stays with it: every later call fails."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
