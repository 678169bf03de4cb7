"""A Python interpreter and what it can import: asked once, without importing any of it. Called by the launch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys
from dataclasses import dataclass

from pods.transport.local import LocalTransport
from workloads.contract.errors import OrchError

TIMEOUT_S = 20.0
_ASK = """
import importlib.metadata as m, importlib.util as u, json, platform
try: ray = m.version("ray") if u.find_spec("ray") else None
except m.PackageNotFoundError: ray = None
print("\\n" + json.dumps([platform.python_version(), ray, u.find_spec("torch") is not None]))
"""


@dataclass(frozen=True)
class Interpreter:
    path: str
    version: str  # "" when it could not be run
    ray: str | None
    torch: bool


def look(python: str) -> Interpreter:
    """What `python` is and has. One that cannot be run has version ""."""
    if python == sys.executable:
        return Interpreter(
            python, platform.python_version(), _ray_here(), importlib.util.find_spec("torch") is not None
        )
    try:
        done = LocalTransport().run([python, "-s", "-c", _ASK], timeout_s=TIMEOUT_S)
        version, ray, torch = json.loads(done.stdout.strip().rpartition("\n")[2]) if done.ok else ("", None, False)
    except (OrchError, ValueError):
        return Interpreter(python, "", None, False)
    return Interpreter(python, str(version), ray, bool(torch))


def _ray_here() -> str | None:
    if importlib.util.find_spec("ray") is None:
        return None
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return None
