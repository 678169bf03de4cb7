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

    @classmethod
    def told(cls, row: Mapping[str, Any]) -> Interpreter:
        """From the answer of `pods.remote.home`, here or on another pod."""
        ray = row.get("ray")
        return cls(
            str(row["path"]), str(row["version"]), ray if isinstance(ray, str) else None, row.get("torch") is True
        )


def look(python: str) -> Interpreter:
    """What `python` on this machine is and has. One that cannot be run has version ""."""
    if python == sys.executable:
        torch = importlib.util.find_spec("torch") is not None
        return Interpreter(python, platform.python_version(), _ray_here(), torch)
    from pods.remote.home import interpreter

    return Interpreter.told(interpreter(python))


def _ray_here() -> str | None:
    if importlib.util.find_spec("ray") is None:
        return None
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return None
