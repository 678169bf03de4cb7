"""SIGKILL for ranks at a step: what `orch verify-resume` does to a run of its own, to see that nothing is lost by it.

Looks at the end of the ledger every few milliseconds, here where the run lies, so that a kill hits its step over a slow
link too. A process is signalled only after its identity was checked. Called by `pods.remote.runs`.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pods.remote.rankrecords import newest_attempt, process_of, record
from workloads.contract.files import read_tail, try_read_json
from workloads.contract.rundir import RunDir
from workloads.contract.states import ENDED

LOOK_S = 0.002
MAX_WAIT_S = 10.0
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Killed:
    """`ranks`: those that were hit, none before the step is reached. `step`: the ledger's last one then."""

    ranks: tuple[int, ...]
    step: int
    attempt: int
    ended: bool
    """the run has ended: there is nobody left to kill"""


def kill_at(run: RunDir, step: int, ranks: Sequence[int], *, after: int, wait_s: float) -> Killed:
    """Kill `ranks` once they all run in an attempt behind `after` that has written `step` or a later one, in `wait_s`.

    A rank that nobody recorded yet is waited for: ranks that do not wait for each other start apart.
    """
    deadline = time.monotonic() + min(wait_s, MAX_WAIT_S)
    while True:
        attempt = newest_attempt(run)
        reached = _reached(run, attempt) if attempt > after else -1
        if reached >= step and all(record(run, attempt, k) for k in ranks):
            return Killed(_kill(run, attempt, ranks), reached, attempt, False)
        ended = (try_read_json(run.status) or {}).get("state") in ENDED
        if ended or time.monotonic() >= deadline:
            return Killed((), reached, attempt, ended)
        time.sleep(LOOK_S)


def _reached(run: RunDir, attempt: int) -> int:
    """The newest step that this attempt has written; -1 when it has written none."""
    lines = read_tail(run.ledger, _TAIL_BYTES).split(b"\n")[:-1]  # what follows the last newline is being written
    try:
        row = json.loads(lines[-1])
        step = row["step"] if row["attempt"] == attempt else -1
    except (IndexError, KeyError, TypeError, ValueError):
        return -1
    return step if type(step) is int else -1


def _kill(run: RunDir, attempt: int, ranks: Sequence[int]) -> tuple[int, ...]:
    found = [(k, process_of(record(run, attempt, k))) for k in ranks]
    return tuple(k for k, process in found if process is not None and process.signal(signal.SIGKILL))
