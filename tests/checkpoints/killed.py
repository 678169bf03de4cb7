"""A rank of the real trainer that is killed before the n-th thing its second save does to the disk.

`TEST_KILL=<rank>:<n>`; started by `harness.launch_ranks(argv=...)` in the place of `workloads.train`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoints.steps import killed_at
from workloads.runtime.checkpoint import Checkpointer
from workloads.train.__main__ import main


def kill_in_second_save(n: int) -> None:
    save: Callable[..., Path | None] = Checkpointer._save  # in the rank's own thread or in that of the background
    calls = 0

    def counted(self: Checkpointer, *args: Any, **more: Any) -> Path | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            killed_at(n, self.env.run.checkpoints, 2)
        return save(self, *args, **more)

    Checkpointer._save = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, _, n = os.environ["TEST_KILL"].partition(":")
    if os.environ["RANK"] == rank:
        kill_in_second_save(int(n))
    sys.exit(main())
