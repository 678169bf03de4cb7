"""Suite `decoupled`: one decode step over the decoupled cache, as `kernels.bench.quantized` measures it.

The cases of one length share the times of the peers, and the null token is held to the same case without it. Both are
taken from the rows, so that a resumed run measures what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from kernels.bench import quantized
from kernels.bench.peers import PeerTimes
from kernels.bench.rows import Measured

if TYPE_CHECKING:
    from workloads.bench.suites import Context

NAME = "decoupled"


def cases(device: torch.device, *, quick: bool = False) -> Sequence[quantized.Case]:
    return [case for group in quantized.cases(device, quick=quick) for case in group]


def measure(case: quantized.Case, context: Context) -> Measured:
    group = quantized.Group(context.found, context.device, context.replays, context.seed)
    base = replace(case, null=False, tail=0, kinds="q4q8q4")
    first = context.row(NAME, base.name)
    if first is not None and case != base:
        group.peers = PeerTimes(dict(first["peers"]), dict(first["peer_notes"]))
        group.plain_us = {base.name: float(first["us"])}
    with torch.inference_mode():
        return group.measure(case)
