"""Sending a file that another person may be sending to the same pod at this moment. Called by `ensure` and its kin.

Two uploads of one file share what lies there half-sent, and the one that is overtaken is refused (`pods.remote.files`);
it asks again what is there, and mostly finds the file whole.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from pods.copy import push_file
from pods.pod import Pod
from workloads.contract.errors import OrchError

OVERTAKEN = frozenset({"E-FILE-004", "E-FILE-005", "E-POD-012"})
TRIES = 6
PAUSE_S = 0.5


def send(
    pod: Pod, source: Path, target: str, *, mode: int = 0o600, on_bytes: Callable[[int], None] = lambda _: None
) -> str:
    """As `push_file`; what really is damaged fails all the same, after `TRIES` attempts."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return push_file(pod, source, target, mode=mode, on_bytes=on_bytes)
        except OrchError as e:
            if e.code not in OVERTAKEN or not left:
                raise
            time.sleep(random.uniform(0.1, 1.0) * PAUSE_S)
    raise AssertionError("not reached")
