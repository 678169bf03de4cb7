"""Where in a rank's log a moment lies.

Lines of a log carry no time. Heartbeats do, and a training log names its steps (`step 120 | loss ...`), so the place
is found by steps: the newest step whose beat is older than the moment; the log is shown from the line after that
step. What is shown is therefore all that was printed since the moment, and at most the lines of one beat more. A file
not written since the moment shows nothing. A rank that prints no steps cannot be placed: its whole log is shown, and
that is said. Used by `orch logs --since`.
"""

from __future__ import annotations

import calendar
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.runs.logs import LogReader
from workloads.contract.beats import Beat, BeatReader
from workloads.contract.errors import UsageError
from workloads.contract.rundir import RunDir

ATTEMPT = "attempt"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d{1,9})([smhd])")
_STEP = re.compile(rb"(?:\[[^\]]*\] )?step (\d{1,15}) \|")


def parse_since(text: str, now: float) -> float | None:
    """Unix seconds of `10m`, `2h` or an ISO time; None for `attempt`. UsageError (E-LOG-001) for anything else."""
    if text == ATTEMPT:
        return None
    if m := _SPAN.fullmatch(text):
        return now - int(m[1]) * _UNITS_S[m[2]]
    try:
        if re.fullmatch(r"\d{8}T\d{6}Z", text):
            return float(calendar.timegm(time.strptime(text, "%Y%m%dT%H%M%SZ")))
        if re.match(r"\d{4}-\d\d-\d\d", text):
            return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        "E-LOG-001", f"{text!r} is not a time", where="--since", value=text,
        expected="30s, 10m, 2h or 1d ago; an ISO time such as 2026-11-21T09:30; or `attempt`", fix="--since 10m",
    )  # fmt: skip


def start_of(run: RunDir, rank: int, moment: float | None, attempt: int) -> tuple[int, str | None]:
    """(byte offset, note): where the log of `rank` begins for `moment` (None: for the present attempt)."""
    path = run.rank_log(rank)
    try:
        st = path.stat()
    except OSError:
        return 0, None
    if moment is not None and st.st_mtime < moment:
        return st.st_size, None
    if moment is None:
        first = next((b.ts for b in _beats(run, rank) if b.attempt >= attempt), None)
        if first is None and attempt > 1:
            return 0, f"rank {rank} has no heartbeat of attempt {attempt}: its whole log is shown"
        moment = first if first is not None else 0.0
    past = Past.of(_beats(run, rank), moment)
    if not past.older and (past.any or moment == 0.0):
        return 0, None  # it began after the moment
    place = _place(_step_lines(path), past)
    if place is None:
        return 0, f"rank {rank} prints no steps by which the time could be found: its whole log is shown"
    return place, None


@dataclass
class Past:
    """What heartbeats say of a moment; a run has millions of them, so they are gone through once."""

    any: bool = False
    older: bool = False
    last: tuple[int, int] | None = None  # (attempt, step) of the newest step beaten before the moment
    later: int = 0  # attempts after that one which made steps

    @classmethod
    def of(cls, beats: Iterable[Beat], moment: float) -> Past:
        past, attempts = cls(), set[int]()
        for beat in beats:
            past.any = True
            past.older = past.older or beat.ts < moment
            step = beat.get("step")
            if step is not None:
                attempts.add(beat.attempt)
                if beat.ts < moment:
                    past.last = (beat.attempt, step)
        past.later = sum(past.last is not None and a > past.last[0] for a in attempts)
        return past


def place_of(lines: Iterable[tuple[int, int]], beats: Iterable[Beat], moment: float) -> int | None:
    """The offset after the line of the newest step beaten before `moment`; None when it cannot be told. Pure.

    `lines`: (offset after the line, step) of every step line. A restart repeats steps, so the log is cut into
    stretches where the step falls, and as many stretches as there were later attempts are left out from its end.
    """
    return _place(lines, Past.of(beats, moment))


def _place(lines: Iterable[tuple[int, int]], past: Past) -> int | None:
    if past.last is None:
        return None
    step, best, stretches = past.last[1], 0, deque[int]()  # best: of the stretches that are certainly before the moment
    before: int | None = None
    earliest, passed = 0, False
    for offset, found in lines:
        if before is None or found <= before:
            stretches.append(0)
            if len(stretches) > past.later + 1:
                best = max(best, stretches.popleft())
        before = found
        if found <= step:
            stretches[-1] = offset
        if not passed:  # the earliest place at which `step` may have been reached
            earliest = offset if found <= step else earliest
            passed = found >= step
    if before is None:
        return None
    if len(stretches) <= past.later:
        return earliest  # the stretches cannot be told apart: rather too much than too little
    return max(best, stretches[0])


def _beats(run: RunDir, rank: int) -> Iterator[Beat]:
    return BeatReader(run.heartbeat(rank), rank).stream()


def _step_lines(path: Path) -> Iterator[tuple[int, int]]:
    reader = LogReader(path, ends=True)
    while new := reader.read():
        offset = reader.position - sum(map(len, new))
        for line in new:
            offset += len(line)
            if m := _STEP.match(line):
                yield offset, int(m[1])
