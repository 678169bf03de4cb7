"""What a kernel must reach on an H200, and whether a time reaches it: numbers out of the design, nothing measured.

A share of the read limit becomes microseconds through the limit of this run; a multiple of FA3 through FA3's time of
this run. Pure functions; called by the suites and by tests.
"""

from __future__ import annotations

from dataclasses import dataclass

LONG = 8192  # "S >= 8k"
OLD_TARGET_US = 10.0  # asked for once at B16 H8 D64, whatever the length


@dataclass(frozen=True)
class Goal:
    """Microseconds: at most `must_us`; `strong_us` is what tuning is for. None: nothing is asked of this case."""

    must_us: float | None = None
    strong_us: float | None = None

    def met(self, us: float | None) -> str:
        """ "strong", "must", "missed", or "-" where nothing is asked or nothing was timed."""
        if us is None or self.must_us is None:
            return "-"
        if self.strong_us is not None and us <= self.strong_us:
            return "strong"
        return "must" if us <= self.must_us else "missed"


def dense(batch: int, heads: int, kv_heads: int, dim: int, length: int, limit_us: float) -> Goal:
    """fp16 and bf16 decode: fixed times where the design gives them, else 85 and 92 % of the limit (B16, S >= 8k)."""
    fixed = {
        (16, 8, 8, 64, 2048): Goal(21.0, 18.5),
        (1, 32, 8, 128, 4096): Goal(11.7, 9.0),
        (1, 32, 8, 128, 32768): Goal(38.0, 35.0),
    }
    case = (batch, heads, kv_heads, dim, length)
    if case in fixed:
        return fixed[case]
    return Goal(limit_us / 0.85, limit_us / 0.92) if batch == 16 and length >= LONG else Goal()


def quantized(kinds: str, batch: int, length: int, limit_us: float, fa3_us: float | None) -> Goal:
    """`kinds`: "q4q8q4", "q8q8q8" or "fp16". Both the share of the limit and the multiple of fp16 FA3 are asked for."""
    if kinds == "q4q8q4" and batch == 16 and length == 2048:
        return Goal(14.0, 9.9)
    asked = {"q4q8q4": ((0.45, 1.3), (0.62, 1.9)), "q8q8q8": ((0.70, 1.4), (0.82, 1.4))}
    if kinds not in asked or length < LONG:
        return Goal()
    (must, must_times), (strong, strong_times) = asked[kinds]
    return Goal(_both(limit_us / must, fa3_us, must_times), _both(limit_us / strong, fa3_us, strong_times))


def null_token(without_us: float) -> Goal:
    """What the null token may cost: 3 %, better 1 % of the same case without it."""
    return Goal(1.03 * without_us, 1.01 * without_us)


def old_target(us: float | None, limit_us: float) -> str:
    """What to say of the old target: "met", "missed", or that no fp16 cache can meet it."""
    if limit_us > OLD_TARGET_US:
        return "below the fp16 limit"
    return "-" if us is None else "met" if us <= OLD_TARGET_US else "missed"


def _both(us: float, fa3_us: float | None, times: float) -> float:
    return us if fa3_us is None else min(us, fa3_us / times)
