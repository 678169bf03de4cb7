"""Did training become slower? Tokens/s of two or more runs in, a shift and how sure it is out. Pure, and no chance.

Steps of a run are not independent (clocks, heat, a neighbour), their times have a long tail (checkpoints, stalls), and
a run as a whole is a little faster or slower than the next one. So:

- The first fifth of the rows (20 at least) is warm-up and left out. The rest is cut into 20 blocks in a row; the median
  of each block stands for it: a stall of a few steps moves none, neighbouring steps are not counted as many witnesses.
- The shift is the Hodges-Lehmann estimate between the logarithms of the medians, with the distribution-free interval of
  the rank-sum test (Hodges and Lehmann, Annals of Mathematical Statistics 34, 1963; Mann and Whitney, ibid. 18, 1947).
- What is left of the correlation between neighbouring blocks makes the interval wider by sqrt((1 + r) / (1 - r)), r
  being the lag-1 autocorrelation of the blocks (Bayley and Hammersley, J. R. Stat. Soc. Suppl. 8, 1946). A bootstrap of
  blocks gives the same on well-behaved rows, needs random numbers, and is too narrow with 20 of them.
- Blocks cannot tell how much *runs* differ. From three runs in the baseline on, the new run must also lie below what
  the next run of them would with 99 % (the one-sided prediction bound of Student's t over the runs' own medians).

A drop is found when the estimate exceeds the tolerance, the whole 99 % interval lies below 0, and the new run lies
below the prediction bound where there is one. `tests/smoke` holds this to at most 1 % false alarms, and to 3 % drops.
Called by `orchestrator.runs.baseline`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WARM_UP_SHARE, WARM_UP_ROWS = 0.2, 20
BLOCKS = 20
MIN_BLOCK_ROWS = 4
MIN_RATES = WARM_UP_ROWS + BLOCKS * MIN_BLOCK_ROWS
"""tokens/s of fewer steps are no witness of anything"""
Z_99 = 2.3263
"""one-sided 99 % of the normal distribution: two such bounds are an interval of 98 %, each side told at 99 %"""
MIN_RUNS = 3
T_99 = (31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764, 2.718, 2.681, 2.650, 2.624, 2.602, 2.583,
        2.567, 2.552, 2.539, 2.528)  # fmt: skip
"""one-sided 99 % of Student's t for 1 to 20 degrees of freedom"""
MAX_RUNS = len(T_99) + 1
MAX_CORRELATION = 0.9


@dataclass(frozen=True)
class Shift:
    """How the new run stands to the old ones: shares of their tokens/s (-0.03: 3 % slower).

    `low`, `high`: one-sided 99 % bounds each, None where blocks cannot bound it. `bound`: the share below which only
    one in a hundred runs like the old ones lies; None with fewer than three. `runs`: old ones.
    """

    change: float
    low: float | None
    high: float | None
    bound: float | None
    runs: int

    def is_drop(self, tolerance: float) -> bool:
        """Slower by more than `tolerance` (0.05: 5 %), and surely so."""
        return self.change < -tolerance and self.is_sure

    @property
    def is_sure(self) -> bool:
        """Slower at all with 99 %: by its blocks and, where that is known, as a run among runs."""
        return self.high is not None and self.high < 0 and (self.bound is None or self.change < self.bound)


def block_medians(rates: Sequence[float]) -> tuple[float, ...]:
    """Medians of 20 blocks in a row, the warm-up left out. ValueError with fewer than 100 positive finite rates."""
    good = [x for x in rates if math.isfinite(x) and x > 0]
    if len(good) < MIN_RATES:
        raise ValueError(f"{len(good)} rows tell tokens/s, and {MIN_RATES} are needed")
    warm = good[max(WARM_UP_ROWS, int(len(good) * WARM_UP_SHARE)) :]
    edges = [len(warm) * i // BLOCKS for i in range(BLOCKS + 1)]
    return tuple(statistics.median(warm[a:b]) for a, b in pairwise(edges))


def shift(old: Sequence[Sequence[float]], new: Sequence[float]) -> Shift:
    """`new` beside the runs `old`, all as `block_medians`. ValueError without an old one."""
    if not old:
        raise ValueError("there is no run to compare with")
    runs = [[math.log(x) for x in run] for run in old[-MAX_RUNS:]]
    own = [math.log(x) for x in new]
    before = [x for run in runs for x in run]
    pairs = sorted(x - y for x in own for y in before)
    low, high = _bounds(pairs, len(own), len(before), _widening([*runs, own]))
    return Shift(
        _share(statistics.median(pairs)), None if low is None else _share(low), None if high is None else _share(high),
        _prediction_bound([statistics.median(run) for run in runs]), len(runs),
    )  # fmt: skip


def _share(log_ratio: float) -> float:
    return math.expm1(log_ratio)


def _bounds(pairs: Sequence[float], m: int, n: int, widening: float) -> tuple[float | None, float | None]:
    """The order statistics of all differences that bound the shift, by the normal approximation of the rank sum."""
    spread = Z_99 * widening * math.sqrt(m * n * (m + n + 1) / 12)
    k = math.floor(m * n / 2 - spread)  # so many differences at each end lie outside
    return (pairs[k - 1], pairs[m * n - k]) if k >= 1 else (None, None)


def _widening(runs: Sequence[Sequence[float]]) -> float:
    """How much wider the interval is for blocks that follow their neighbours, over all runs."""
    above = below = 0.0
    for run in runs:
        middle = statistics.median(run)
        centred = [x - middle for x in run]
        above += math.fsum(a * b for a, b in pairwise(centred))
        below += math.fsum(a * a for a in centred)
    r = min(max(above / below if below else 0.0, 0.0), MAX_CORRELATION)
    return math.sqrt((1 + r) / (1 - r))


def _prediction_bound(medians: Sequence[float]) -> float | None:
    """The share of the runs' mean below which the next one lies with 1 %; None with fewer than three runs."""
    k = len(medians)
    if k < MIN_RUNS:
        return None
    return _share(-T_99[k - 2] * statistics.stdev(medians) * math.sqrt(1 + 1 / k))
