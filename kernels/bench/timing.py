"""Device time of a launch: a captured CUDA graph of many launches, CUDA events around its replays, the median.

Host dispatch of a Triton launch is 9 to 16 us, so nothing short is timed eagerly: only when a capture fails, and then
the answer says so (`how`). Inputs are rotated past the L2 by the caller, who builds `rotation` copies of them. On the
CPU it is wall clock, for tests of the bench alone. Never divides by a batch or by heads. Called by suites and probe.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Launch = Callable[[], object]
How = Literal["graph", "events", "wall"]
L2State = Literal["rotated", "hot"]

GRAPH_US = 2500.0  # a replay's own start is some 5 us: 0.2 % of this
MOST_LAUNCHES = 600


@dataclass(frozen=True)
class Timing:
    """us: median microseconds of one launch; p10, p90: of the replays; launches: in one replay; how and on what."""

    us: float
    p10: float
    p90: float
    launches: int
    how: How
    l2_state: L2State


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of `values` lie, linear between neighbours. ValueError when empty."""
    if not values:
        raise ValueError("no values: a percentile needs at least one")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def rotation(copy_bytes: int, l2_bytes: int, *, most_bytes: int, times: int = 4) -> int:
    """How many copies of an input of `copy_bytes` are read in turn so that none is found in the L2.

    At least two, together at least `times` the L2, never more than `most_bytes` (but one copy is always allowed).
    ValueError for sizes that are not positive.
    """
    if copy_bytes <= 0 or most_bytes <= 0 or l2_bytes < 0:
        raise ValueError(
            f"copy_bytes {copy_bytes} and most_bytes {most_bytes} must be positive, l2_bytes {l2_bytes} >= 0"
        )
    wanted = max(2, -(-times * l2_bytes // copy_bytes))
    return max(1, min(wanted, most_bytes // copy_bytes))


def launches_for(estimate_us: float, rotate: int) -> int:
    """Launches in one graph: whole rounds of the copies, about GRAPH_US long, at most MOST_LAUNCHES (or one round)."""
    wanted = min(MOST_LAUNCHES, GRAPH_US / max(estimate_us, 0.5))
    return rotate * max(1, math.ceil(wanted / rotate))


def summary(samples_us: Sequence[float], launches: int, how: How, l2_state: L2State) -> Timing:
    """Timing of replays that took `samples_us` a launch."""
    median = statistics.median(samples_us)
    return Timing(median, percentile(samples_us, 0.1), percentile(samples_us, 0.9), launches, how, l2_state)


def graph_time(
    make_launch: Callable[[int], Launch],
    rotate: int,
    *,
    device: torch.device,
    replays: int = 15,
    l2_state: L2State = "rotated",
) -> Timing:
    """Time of one launch of `make_launch(i)()`, i running over `rotate` copies of the inputs.

    `make_launch(i)` builds what copy i needs and returns the launch, which must not synchronize. A launch that fails
    raises what it raises; a capture that fails is timed by events around eager launches instead (`how == "events"`).
    """
    launches = [make_launch(i) for i in range(rotate)]
    if device.type != "cuda":
        return _wall_time(launches, replays, l2_state)
    for launch in [launches[0], launches[0], *launches]:
        launch()
    torch.cuda.synchronize(device)
    count = launches_for(_estimate(launches), rotate)
    try:
        graph = _captured(launches, count)
    except RuntimeError:  # what cannot be captured says so in many ways, all of them RuntimeErrors
        torch.cuda.synchronize(device)
        return _timed(lambda: _round(launches, count), count, replays, "events", l2_state)
    return _timed(graph.replay, count, replays, "graph", l2_state)


def _round(launches: list[Launch], count: int) -> None:
    for i in range(count):
        launches[i % len(launches)]()


def _elapsed_us(do: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    do()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end))


def _estimate(launches: list[Launch]) -> float:
    """Microseconds of a launch, from a graph of one round; from an eager round (an upper bound) where that fails."""
    try:
        graph = _captured(launches, len(launches))
    except RuntimeError:
        torch.cuda.synchronize()
        return _elapsed_us(lambda: _round(launches, len(launches))) / len(launches)
    graph.replay()
    return min(_elapsed_us(graph.replay) for _ in range(3)) / len(launches)


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """torch's own is one for the process, on the device of the first capture: on any other it would capture nothing."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _captured(launches: list[Launch], count: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_capture_stream(torch.cuda.current_device())):
        _round(launches, count)
    return graph


def _timed(do: Callable[[], object], count: int, replays: int, how: How, l2_state: L2State) -> Timing:
    do()
    torch.cuda.synchronize()
    return summary([_elapsed_us(do) / count for _ in range(replays)], count, how, l2_state)


def _wall_time(launches: list[Launch], replays: int, l2_state: L2State) -> Timing:
    samples = []
    for _ in range(replays):
        start = time.perf_counter()
        _round(launches, len(launches))
        samples.append(1e6 * (time.perf_counter() - start) / len(launches))
    return summary(samples, len(launches), "wall", l2_state)
