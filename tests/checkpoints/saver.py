"""A run whose rank saves bytes instead of tensors: the real writer, the real resume, real files, no torch.

What a checkpoint of step n must hold is known (`content`), so that a test can tell the right one from a whole one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from workloads.contract.manifest import committed, verify
from workloads.contract.rundir import RunDir
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer, Provenance
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import Retention
from workloads.runtime.state import RankState

RUN_ID = "saver-20260101T000000Z-abcd"
FILES = 2


def content(step: int, size: int) -> bytes:
    return random.Random(step).randbytes(size)


class FileState:
    """Files of known bytes, written as torch writes its own: open, write, fsync."""

    def __init__(self, size: int = 60_000) -> None:
        self.size, self.step = size, 0
        self.read_bytes = b""

    def size_bytes(self) -> int:
        return self.size

    def copy_bytes(self) -> int:
        return self.size

    def capture(self) -> FileState:
        copy = FileState(self.size)
        copy.step = self.step
        return copy

    def write(self, staged: Path) -> list[Path]:
        data, made = content(self.step, self.size), []
        for i in range(FILES):
            path = staged / f"__0_{i}.bin"
            with path.open("wb") as f:
                f.write(data[i::FILES])
                f.flush()
                os.fsync(f.fileno())
            made.append(path)
        return made

    def read(self, path: Path) -> None:
        halves = [(path / f"__0_{i}.bin").read_bytes() for i in range(FILES)]
        out = bytearray(self.size)
        for i, half in enumerate(halves):
            out[i::FILES] = half
        self.read_bytes = bytes(out)


def make_run(root: Path) -> RunDir:
    run = RunDir(root / RUN_ID)
    for folder in run.skeleton():
        folder.mkdir(parents=True, exist_ok=True)
    run.epoch.write_text("1\n")
    return run


def rank_env(run: RunDir, attempt: int = 1) -> RankEnv:
    env = RankEnv.read({"ORCH_RUN_DIR": str(run.path), "ORCH_ATTEMPT": str(attempt)})
    assert env is not None
    return env


def checkpointer(run: RunDir, attempt: int = 1, keep: int = 2, state: RankState | None = None) -> Checkpointer:
    retention = Retention(keep)
    return Checkpointer(
        rank_env(run, attempt), Agreement(), state or FileState(), Provenance("c", "d", {"x": "1"}), retention
    )


def save(saver: Checkpointer, step: int, before_commit: Callable[[], None] = lambda: None) -> Path | None:
    """One save of the bytes of `step`."""
    return saver.save(step, _trainer(saver, step), before_commit)


def begin(saver: Checkpointer, step: int, before_commit: Callable[[], None] = lambda: None) -> None:
    """As `save`, in the background."""
    saver.begin(step, _trainer(saver, step), before_commit)


def _trainer(saver: Checkpointer, step: int) -> dict[str, object]:
    state = saver._state
    if isinstance(state, FileState):
        state.step = step
    return {"v": 1, "step": step, "samples": step, "config": {}, "corpus": "x"}


def verified(run: RunDir) -> list[int]:
    """Steps of the checkpoints that verify, newest first."""
    return [int(p.name.removeprefix("step_")) for p in committed(run) if not verify(p, run_id=run.run_id)]


def leftovers(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir() if p.name.startswith(".tmp_"))
