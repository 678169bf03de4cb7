"""When to save, and how long to go on trying. Pure: the time is given.

By the clock of rank 0, whose answer the others take. A save that failed is tried again after 5, 15, 30, then every
60 s, whatever the job's own intervals are. The save that a halt waits for is tried until the halt's clock is nearly
over: SIGKILL follows, and an acknowledgement without a checkpoint is better than none. Called by the train loop.
"""

from __future__ import annotations

RETRY_S = (5.0, 15.0, 30.0, 60.0)
HURRY_S = (1.0, 2.0, 5.0)
"""Between tries when nothing else is left to do."""
LAST_SAVE_S = 300.0
"""For how long the save after the last step is tried when nobody asked to halt."""
HALT_MARGIN_S = 10.0
"""SIGKILL comes 30 s after SIGTERM; the last try begins this long before it, or twice what a try takes."""
TERM_TO_KILL_S = 30.0
URGENT_KILL_S = 30.0


def wait_s(failed: int, waits: tuple[float, ...] = RETRY_S) -> float:
    """Seconds to the next try after `failed` in a row (1 or more)."""
    return waits[min(failed, len(waits)) - 1]


class SaveClock:
    """When a checkpoint is due by time: `every_s` after the last one, sooner after a failure."""

    def __init__(self, every_s: float | None, now: float) -> None:
        self._every_s, self._failed = every_s, 0
        self._at = None if every_s is None else now + every_s

    def due(self, now: float) -> bool:
        return self._at is not None and now >= self._at

    def saved(self, now: float) -> None:
        self._failed = 0
        self._at = None if self._every_s is None else now + self._every_s

    def failed(self, now: float) -> None:
        self._failed += 1
        wait = wait_s(self._failed)
        self._at = now + (wait if self._every_s is None else min(wait, self._every_s))


def try_again(
    now: float, *, began: float, try_s: float, grace_s: float, halt_at: float | None, urgent_at: float | None
) -> bool:
    """Is there time for another try of a save that must not be given up?

    All times are on one monotonic clock: `began` the first try, `try_s` what the last one took, `halt_at` when the halt
    was seen, `urgent_at` when it was seen to be one of `--now`.
    """
    ends = [began + LAST_SAVE_S] if halt_at is None else [halt_at + grace_s + TERM_TO_KILL_S]
    if urgent_at is not None:
        ends.append(urgent_at + URGENT_KILL_S)
    margin = max(HALT_MARGIN_S, 2 * try_s) if halt_at is not None else 0.0
    return now < min(ends) - margin
