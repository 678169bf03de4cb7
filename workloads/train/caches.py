"""Where what is compiled is kept: on the pod, so that a second start finds it. No torch here.

Torch says where for itself as soon as some of its parts are imported: called before that, by `workloads.train.__main__`
and `workloads.bench.__main__`.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def keep_caches() -> None:
    """Below $ORCH_HOME/cache, unless the job's `env` says where; outside orch where torch has them."""
    if home := os.environ.get("ORCH_HOME"):
        for variable, folder in CACHES.items():
            os.environ.setdefault(variable, str(Path(home) / "cache" / folder))
