"""Each step of a reply as orch sees it: a beat, now and then how much memory is held, and whether to stop.

Called by generation itself, by the host as it comes to a step; costs microseconds. Made by `workloads.decode.loop`.
"""

from __future__ import annotations

import time

import torch

from workloads.decode.figures import resident_bytes
from workloads.runtime import Run

SAMPLES = 32
"""of memory, in a reply of full length"""


class HaltAsked(Exception):
    """Somebody wants the run to stop. The turn that was being made is dropped, and made again later."""


class Progress:
    """`steps`: of the whole run, as if every reply had `limit` tokens; where one ends early the count jumps."""

    def __init__(self, run: Run, device: torch.device, steps: int, limit: int) -> None:
        self._run, self._device, self._steps = run, device, steps
        self._every = max(1, limit // SAMPLES)
        self._done, self._began = 0, 0.0
        self.samples: list[list[int]] = []
        """[step, bytes of this process in RAM, bytes in use on the device (0 without one)]"""

    def begin(self, done: int) -> None:
        """A reply begins behind `done` steps."""
        self._done, self._began, self.samples = done, time.perf_counter(), []
        self._run.beat(step=done, steps=self._steps)

    def __call__(self, step: int) -> None:
        if self._run.asked_to_halt:
            raise HaltAsked
        if step % self._every == 0:
            self.samples.append([step, resident_bytes(), self._in_use()])
        passed = time.perf_counter() - self._began
        self._run.beat(step=self._done + step, steps=self._steps, toks_per_s=step / passed if step else None)

    def _in_use(self) -> int:
        if self._device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free
