"""One all-reduce a step for everything that ranks must agree on, read one step late so that no step waits for it.

Each step pushes a small float64 vector (loss sum, token count, halt flag, ...); `push` gives back the sum over ranks of
the step before. The lag is one step on every rank and for every world size, one rank included: a run that stops at
step n stops there with 1, 2 or 8 ranks. Sums of integers below 2**53 are exact. Lanes do not mix: a NaN loss leaves
the halt flag alone.

On a GPU the vector lives on the device, is reduced by NCCL and comes back through pinned memory; elsewhere gloo.
torch is imported inside functions. Called by `Run.should_halt` and the train loop; not thread-safe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

Tag = TypeVar("Tag")


def distributed_world() -> int:
    """Ranks of the initialised default process group, 1 without one; never imports torch."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 1
    return int(dist.get_world_size())


@dataclass
class _Flight:
    """A reduction under way: its vector, what to wait for, and the caller's tag."""

    host: torch.Tensor
    tag: Any
    work: Any = None  # torch.distributed.Work
    event: Any = None  # torch.cuda.Event
    keep: Any = None  # the device vector and its source, alive until the copy back is done


class StepReduction(Generic[Tag]):
    """Sums `lanes` float64 numbers over all ranks. Every rank must push and drain at the same steps."""

    def __init__(self, lanes: int, *, device: str = "cpu", timeout_s: float = 300.0) -> None:
        self.lanes = lanes
        self._cuda = device.startswith("cuda")
        self._device = device
        self._group: Any = None
        self._flight: _Flight | None = None
        if distributed_world() > 1:
            import torch.distributed as dist

            # a group of its own: its order never mixes with the gradients' collectives
            backend = "nccl" if self._cuda else "gloo"
            self._group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout_s))

    def push(
        self, values: Sequence[float], tag: Tag, *, on_device: dict[int, torch.Tensor] | None = None
    ) -> tuple[list[float], Tag] | None:
        """Start the sum of this step and return the sum and the tag of the step before (None at the first).

        `on_device` maps a lane to a scalar tensor that is added to it without a host sync.
        """
        import torch

        if len(values) != self.lanes:
            raise ValueError(f"{len(values)} values for {self.lanes} lanes")
        host = torch.tensor(list(values), dtype=torch.float64, pin_memory=self._cuda)
        flight = _Flight(host=host, tag=tag)
        if self._cuda:
            self._launch_cuda(flight, on_device or {})
        else:
            for lane, value in (on_device or {}).items():
                host[lane] += value.detach().to(torch.float64)
            if self._group is not None:
                flight.work = torch.distributed.all_reduce(host, group=self._group, async_op=True)
        before, self._flight = self._flight, flight
        return None if before is None else self._land(before)

    def drain(self) -> tuple[list[float], Tag] | None:
        """Wait for the sum that is under way: before a checkpoint and at the end. None when there is none."""
        before, self._flight = self._flight, None
        return None if before is None else self._land(before)

    def _launch_cuda(self, flight: _Flight, on_device: dict[int, torch.Tensor]) -> None:
        import torch

        vector = flight.host.to(self._device, non_blocking=True)
        for lane, value in on_device.items():
            vector[lane] += value.detach().to(torch.float64)
        if self._group is not None:
            torch.distributed.all_reduce(
                vector, group=self._group, async_op=True
            ).wait()  # the stream waits, not the host
        back = torch.empty(self.lanes, dtype=torch.float64, pin_memory=True)
        back.copy_(vector, non_blocking=True)
        flight.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        flight.event.record()
        flight.keep, flight.host = (vector, flight.host), back

    @staticmethod
    def _land(flight: _Flight) -> tuple[list[float], Any]:
        if flight.work is not None:
            flight.work.wait()
        if flight.event is not None:
            flight.event.synchronize()
        return flight.host.tolist(), flight.tag
