"""Steps that were skipped because their gradients were no finite numbers: counted, told, and at some point the end.

The step itself is skipped on the device (`workloads.train.optim.step_if_finite`), the same on every rank, for the norm
is. What lands here one step late is the same on every rank too. Called by the train loop.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from workloads.contract.config.job import OnNanSpec
from workloads.contract.errors import SpecError

FEW = 3
"""skipped in a row at the end of a run: whatever `skips` allows, more than these speak of weights and not of batches"""


@dataclass
class NanLadder:
    spec: OnNanSpec
    in_a_row: int = 0
    total: int = 0
    """in this attempt"""

    def note(self, step: int, loss: float, grad_norm: float) -> None:
        """Of every step, in order. SpecError when it is one too many."""
        if math.isfinite(grad_norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.total += 1
        told = f"loss {loss:g}, grad_norm {grad_norm:g}"
        if self.in_a_row > self.spec.skips or self.total > self.spec.total:
            raise SpecError(
                "E-TRAIN-012",
                f"step {step} has no finite gradients ({told}), and skipping did not help",
                value=f"{self.in_a_row} in a row, {self.total} in all",
                expected=f"at most {self.spec.skips} in a row (train.on_nan.skips), {self.spec.total} in all (.total)",
                fix="launch a new run with a lower train.lr, a longer train.warmup_steps, or other data",
            )
        print(
            f"warning: step {step} was skipped: {told}; weights are as they were "
            f"({self.in_a_row} of {self.spec.skips} in a row, {self.total} of {self.spec.total} in all)",
            file=sys.stderr, flush=True,
        )  # fmt: skip
