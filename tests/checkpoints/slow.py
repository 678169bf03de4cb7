"""A rank of the real trainer whose disk takes its time: every save in it waits until the file `TEST_GATE` is there.

Started by `harness.launch_ranks(argv=...)` in the place of `workloads.train`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads.runtime.state import TorchState
from workloads.train.__main__ import main

MAX_WAIT_S = 240.0
"""Less than what a collective of the other ranks waits for this one."""


def slow_down(gate: Path) -> None:
    write: Callable[..., list[Path]] = TorchState.write_all

    def slowly(self: TorchState, *args: Any) -> list[Path]:
        deadline = time.monotonic() + MAX_WAIT_S
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return write(self, *args)

    TorchState.write_all = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(Path(os.environ["TEST_GATE"]))
    sys.exit(main())
