"""When to save and how long to go on trying, on a clock that is given."""

from __future__ import annotations

import pytest

from workloads.train.saving import HURRY_S, LAST_SAVE_S, RETRY_S, SaveClock, try_again, wait_s


def due_times(clock: SaveClock, until: float, works_at: float = float("inf")) -> list[int]:
    """Seconds at which a save was due; it fails before `works_at`."""
    found = []
    for now in range(int(until)):
        if clock.due(now):
            found.append(now)
            (clock.saved if now >= works_at else clock.failed)(now)
    return found


def test_saves_by_time() -> None:
    assert due_times(SaveClock(100.0, 0.0), 350, works_at=0) == [100, 200, 300]
    assert due_times(SaveClock(None, 0.0), 350) == []


def test_a_failure_is_tried_again_sooner_and_ever_less_often() -> None:
    assert due_times(SaveClock(100.0, 0.0), 340) == [100, 105, 120, 150, 210, 270, 330]
    assert due_times(SaveClock(100.0, 0.0), 340, works_at=120) == [100, 105, 120, 220, 320]
    assert due_times(SaveClock(2.0, 0.0), 10) == [2, 4, 6, 8]  # never less often than it is due anyway


def test_a_run_that_saves_by_steps_alone_tries_again_by_time() -> None:
    clock = SaveClock(None, 0.0)
    clock.failed(10.0)
    assert not clock.due(14.0) and clock.due(15.0)
    clock.saved(15.0)
    assert not clock.due(1e9)


@pytest.mark.parametrize(
    ("now", "began", "try_s", "halt_at", "urgent_at", "goes_on"),
    [
        (100, 0, 1, None, None, True),
        (LAST_SAVE_S - 1, 0, 1, None, None, True),
        (LAST_SAVE_S, 0, 1, None, None, False),
        (619, 0, 1, 0, None, True),  # SIGTERM at 600 s, SIGKILL at 630 s
        (620, 0, 1, 0, None, False),
        (500, 0, 70, 0, None, False),  # a try takes 70 s: it would not be over before the SIGKILL
        (19, 5, 1, 5, 0, True),
        (20, 5, 1, 5, 0, False),  # halt --now: SIGKILL at 30 s
        (400, 0, 1, 0, 395, True),  # made urgent late
        (416, 0, 1, 0, 395, False),
        (400, 0, 1, 390, None, True),  # the last save was under way when the halt came
    ],
)  # fmt: skip
def test_how_long_a_save_that_must_not_be_given_up_is_tried(
    now: float, began: float, try_s: float, halt_at: float | None, urgent_at: float | None, goes_on: bool
) -> None:
    answer = try_again(now, began=began, try_s=try_s, grace_s=600.0, halt_at=halt_at, urgent_at=urgent_at)
    assert answer is goes_on


def test_waits_grow_and_stay() -> None:
    assert [wait_s(n) for n in (1, 2, 3, 4, 5, 99)] == [5, 15, 30, 60, 60, 60]
    assert wait_s(1, HURRY_S) < wait_s(1, RETRY_S)
