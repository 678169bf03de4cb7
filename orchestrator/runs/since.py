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
from collections.abc import Iterator, Sequence
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
    beats = _all_beats(run, rank)
    if moment is None:
        first = next((b.ts for b in beats if b.attempt >= attempt), None)
        if first is None and attempt > 1:
            return 0, f"rank {rank} has no heartbeat of attempt {attempt}: its whole log is shown"
        moment = first if first is not None else 0.0
    older = [b for b in beats if b.ts < moment]
    if not older and (beats or moment == 0.0):
        return 0, None  # it began after the moment
    place = place_of(list(_step_lines(path)), beats, moment)
    if place is None:
        return 0, f"rank {rank} prints no steps by which the time could be found: its whole log is shown"
    return place, None


def place_of(lines: Sequence[tuple[int, int]], beats: Sequence[Beat], moment: float) -> int | None:
    """The offset after the line of the newest step beaten before `moment`; None when it cannot be told. Pure.

    `lines`: (offset after the line, step) of every step line. A restart repeats steps, so the log is cut into
    stretches where the step falls, and as many stretches as there were later attempts are left out from its end.
    """
    done = [b for b in beats if b.ts < moment and b.get("step") is not None]
    if not done or not lines:
        return None
    last = done[-1]
    later = {b.attempt for b in beats if b.attempt > last.attempt and b.get("step") is not None}
    falls = [i for i in range(1, len(lines)) if lines[i][1] <= lines[i - 1][1]]
    if len(falls) < len(later):
        return _first_at(lines, last.get("step"))  # the stretches cannot be told apart: rather too much than too little
    end = falls[len(falls) - len(later)] if later else len(lines)
    return max((offset for offset, step in lines[:end] if step <= last.get("step")), default=0)


def _first_at(lines: Sequence[tuple[int, int]], step: int) -> int:
    """The earliest place at which `step` may have been passed."""
    before = 0
    for offset, found in lines:
        if found > step:
            break
        before = offset
        if found == step:
            break
    return before


def _all_beats(run: RunDir, rank: int) -> list[Beat]:
    reader = BeatReader(run.heartbeat(rank), rank)
    beats: list[Beat] = []
    while new := reader.read():
        beats += new
    return beats


def _step_lines(path: Path) -> Iterator[tuple[int, int]]:
    reader = LogReader(path)
    while True:
        offset = reader.position
        new = reader.read()
        if not new:
            return
        for line in new:
            offset += len(line) + 1
            if m := _STEP.match(line):
                yield offset, int(m[1])
