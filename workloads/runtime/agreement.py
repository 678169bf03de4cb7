"""Ranks tell each other how a stage went, so that all go on or all give up. One rank alone agrees with itself.

Called by the checkpoint writer and reader and by the resume. Blocks until every rank has spoken or the timeout is over,
which is long: rank 0 may hash a whole checkpoint while the others wait. Not for the step's path. torch is imported
inside functions.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar, cast

from workloads.contract.healthtable import PHASE_LIMITS_S
from workloads.runtime.reduction import distributed_world

T = TypeVar("T")

PATIENCE_S = 2 * max(PHASE_LIMITS_S.values())
"""No phase takes longer than that by default: the watchdog ends it, and says which rank was slow."""


class Agreement:
    """A gloo group of its own. Every rank makes one, at the same place."""

    def __init__(self, timeout_s: float = PATIENCE_S) -> None:
        self.group: Any = None
        self.rank = 0
        self.world = distributed_world()
        if self.world > 1:
            import torch.distributed as dist

            self.rank = dist.get_rank()
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(self, mine: T) -> list[T]:
        """What every rank says, by rank."""
        if self.group is None:
            return [mine]
        import torch.distributed as dist

        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, mine, group=self.group)
        return cast("list[T]", said)

    def from_rank0(self, mine: T | None) -> T:
        """What rank 0 says; the others' argument is ignored."""
        if self.group is None:
            return cast("T", mine)
        import torch.distributed as dist

        box: list[Any] = [mine]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return cast("T", box[0])
