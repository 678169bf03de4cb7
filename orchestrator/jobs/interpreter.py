"""A Python interpreter and what it can import, asked of it once. Called by the launch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interpreter:
    path: str
    version: str  # "" when it could not be run
    ray: str | None
    torch: bool
    torch_version: str | None = None  # this and the next: None also where it could not be asked
    triton_version: str | None = None

    @classmethod
    def told(cls, row: Mapping[str, Any]) -> Interpreter:
        """From the answer of `pods.remote.home`, here or on another pod."""
        ray, torch, triton = (
            v if isinstance(v := row.get(k), str) else None for k in ("ray", "torch_version", "triton_version")
        )
        return cls(str(row["path"]), str(row["version"]), ray, row.get("torch") is True, torch, triton)


def look(python: str) -> Interpreter:
    """What `python` on this machine is and has. One that cannot be run has version ""."""
    if python == sys.executable:
        torch = importlib.util.find_spec("torch") is not None
        versions = (_version_here("torch"), _version_here("triton"))
        return Interpreter(python, platform.python_version(), _version_here("ray"), torch, *versions)
    from pods.remote.home import interpreter

    return Interpreter.told(interpreter(python))


def _version_here(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
