"""Where a rank's NCCL flight recorder writes, and the pipe that asks it to: two variables of its environment.

Torch (recent ones record without being told to) writes a trace of the last collectives when one times out, and, with a
pipe, whenever a byte comes through it; a thread of its own does so while the main thread hangs. Torch ends the process
when it cannot make its pipe, so the pipe is made here first: only where that works is torch told of it. What the job's
own environment says wins. Called by `rank`, once, before the program starts; never raises.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from workloads.contract.records import ShimOrder
from workloads.contract.rundir import RunDir

TRACE_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
PIPE_FILE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"


def with_recorder(order: ShimOrder, run: RunDir) -> ShimOrder:
    """`order` with the recorder's files in its environment, as far as they are not there; as it is without a GPU."""
    if not order.devices:
        return order
    added = {}
    if not any(name in order.env for name in TRACE_FILE):
        added[TRACE_FILE[0]] = run.nccl_trace_stem(order.attempt)
    stem = run.nccl_pipe_stem(order.attempt)
    if PIPE_FILE not in order.env and _makes_pipe(Path(f"{stem}{order.rank}.pipe")):
        added[PIPE_FILE] = stem
    return replace(order, env={**order.env, **added}) if added else order


def _makes_pipe(path: Path) -> bool:
    """True when the FIFO is there. Torch replaces it by its own, which needs no more room than it frees."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.mkfifo(path, 0o600)
    except OSError:  # a file system without them, a full or read-only one
        return False
    return True
