"""A rank of the real trainer that does not pass a given step before it was asked to halt.

A test that halts or kills a run in its midst must not race with a machine that is done before the test has looked. Up
to the fence the rank runs as it always does. `TEST_FENCE=<rank>:<step>`; started by `harness.launch_ranks(fence=...)`.
"""

from __future__ import annotations

import os
import sys
import time

from workloads.runtime import Run
from workloads.train.__main__ import main

WAIT_S = 240.0
"""Less than what a collective of the other ranks waits for this one."""


def fence(rank: int, step: int) -> None:
    """From now on a beat of this rank at that step or a later one returns when the halt was seen."""
    beat = Run.beat

    def held(run: Run, at: int | None = None, **fields: object) -> None:
        at = fields.pop("step", at)  # type: ignore[assignment]
        beat(run, at, **fields)
        deadline = time.monotonic() + WAIT_S
        while at is not None and at >= step and not run.asked_to_halt:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody asked this rank to halt at step {at}")
            time.sleep(0.01)

    if int(os.environ["RANK"]) == rank:
        Run.beat = held  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    fence(*(int(part) for part in os.environ["TEST_FENCE"].split(":")))
    sys.exit(main())
