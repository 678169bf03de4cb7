"""The saves of a training run: when one is due, begun, over, and what is told of it. One a rank; called by the loop.

In mode `async` the steps wait for the copy into host memory and for nothing else; files, hashes and commit come from a
thread. That it is over is agreed in the reduction that every step makes anyway, so all ranks take note of it at the
same step. `checkpoint.mode: sync`, a host without room for the copies, the last save and that of a halt wait.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from workloads.contract.config.job import CheckpointSpec
from workloads.runtime.checkpoint import Checkpointer, Saved
from workloads.train.saving import SaveClock

LATE_S = 600.0
"""A save that takes longer is waited for, in phase `checkpointing`: what a disk that hangs means is the watchdog's to
say, as it is in mode `sync`."""
CLOSE_S = 10.0
"""How long training that ends badly waits for a save that is under way."""


class Saves:
    """Every method is called by all ranks at the same steps."""

    def __init__(self, checkpointer: Checkpointer, spec: CheckpointSpec) -> None:
        self._checkpointer, self._spec = checkpointer, spec
        self._rank, self._world = checkpointer.env.rank, checkpointer.env.world_size
        self._clock = SaveClock(spec.every_s, time.monotonic())
        self._in_background = False
        self._all_finished = False
        self._began = 0.0

    def open(self) -> None:
        """Before the first step. Collective."""
        why = self._checkpointer.can_copy() if self._spec.mode == "async" else None
        if why:
            print(f"warning: checkpoint.mode is sync: {why}", file=sys.stderr, flush=True)
        self._in_background = self._spec.mode == "async" and why is None

    def is_due(self, step: int) -> bool:
        """By the number of steps, which every rank knows."""
        return bool(self._spec.every_steps) and step % (self._spec.every_steps or 1) == 0

    def says_due(self) -> bool:
        """Rank 0: by the clock. Not while one is under way, unless that is late."""
        if self._rank:
            return False
        if self._checkpointer.underway is not None:
            return time.monotonic() - self._began > LATE_S
        return self._clock.due(time.monotonic())

    @property
    def says_finished(self) -> float:
        """For the reduction: the step whose save is over on this rank, else 0."""
        return float(self._checkpointer.underway or 0) if self._checkpointer.finished else 0.0

    def hear_finished(self, summed: float) -> None:
        """What the ranks said, summed: the save under way is over when all named it."""
        underway = self._checkpointer.underway
        self._all_finished = underway is not None and summed == float(underway) * self._world

    def take_note(self) -> None:
        """After a step: of a save that is over on all ranks. StaleEpochError as `Checkpointer.save`."""
        if self._all_finished:
            self.wait()

    def wait(self) -> None:
        """For the save under way, if there is one."""
        self._all_finished = False
        done = self._checkpointer.collect()
        if done is not None:
            self._tell(done)

    def save(self, step: int, trainer: Mapping[str, Any], before_commit: Callable[[], None], *, stay: bool) -> bool:
        """Save the state as it is now. False: it could not be saved; True: it was, or it is under way.

        stay: until it is saved. A save under way ends first in any case.
        """
        self.wait()
        if self._in_background and not stay:
            self._checkpointer.begin(step, trainer, before_commit)
            self._began = time.monotonic()
            return True
        began = time.perf_counter()
        path = self._checkpointer.save(step, trainer, before_commit)
        self._tell(Saved(step, path, time.perf_counter() - began, 0.0))
        return path is not None

    def skip(self) -> None:
        """There is nothing to save now: not sooner than the next that is due."""
        self._clock.saved(time.monotonic())

    def close(self) -> None:
        self._checkpointer.close(CLOSE_S)

    def _tell(self, done: Saved) -> None:
        (self._clock.saved if done.path else self._clock.failed)(time.monotonic())
        if done.path:
            took = done.blocked_s + done.seconds
            beside = f", {done.blocked_s:.3f} s of it before the next step" if done.seconds else ""
            print(f"checkpoint: {done.path.name} in {took:.2f} s{beside}", flush=True)
