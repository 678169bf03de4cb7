"""`env.json` of a script of a user's own: what it computed on, as the trainer tells it, as far as the script knows.

Nothing is imported and no device is woken for it: what torch has not begun to use is not told. Called by `Run` at the
first row, on rank 0.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from typing import Any

from workloads.contract.files import atomic_write_json
from workloads.runtime.rankenv import RankEnv

TOLD = ("torch", "numpy", "accelerate", "transformers")


def write_env(env: RankEnv) -> None:
    """A full disk is told and not fatal."""
    versions = {"python": platform.python_version()}
    for name in TOLD:
        module = sys.modules.get(name)
        if module is not None and isinstance(getattr(module, "__version__", None), str):
            versions[name] = str(module.__version__)
    row: dict[str, object] = {
        "v": 1, "ts": time.time(), "attempt": env.attempt, "world_size": env.world_size, "versions": versions,
        "executable": sys.executable, "platform": platform.platform(), "cpus": len(os.sched_getaffinity(0)),
        **_device(),
    }  # fmt: skip
    try:
        atomic_write_json(env.run.env_json, row)
    except OSError as e:
        print(f"warning: env.json was not written: {e}", file=sys.stderr, flush=True)


def _device() -> dict[str, object]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {"device": "cpu"}
    here = torch.cuda.current_device()
    return {"device": f"cuda:{here}", "gpu": torch.cuda.get_device_name(here), "cuda": torch.version.cuda}
