"""States of a run, health of a rank, phases of a rank. This file imports nothing of ours.

A run's state is written by its supervisor alone (`status.json`). A rank's health is computed by whoever
looks and is never stored as a state. `unreachable` is something an operator says of a pod, so it is not here.
"""

from enum import StrEnum


class RunState(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    HALTING = "halting"
    HALTED = "halted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RESUMING = "resuming"


class RankHealth(StrEnum):
    LIVE = "live"
    SLOW = "slow"
    SILENT = "silent"
    STOPPED = "stopped"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Phase(StrEnum):
    """The `msg` of a heartbeat line."""

    STARTING = "starting"
    LOADING = "loading"
    COMPILING = "compiling"
    PROGRESS = "progress"
    EVALUATING = "evaluating"
    CHECKPOINTING = "checkpointing"
    HALTING = "halting"
    DONE = "done"


ENDED = frozenset({RunState.HALTED, RunState.SUCCEEDED, RunState.FAILED})
RESUMABLE = frozenset({RunState.HALTED, RunState.FAILED})

_R = RunState
TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    _R.QUEUED: frozenset({_R.PREPARING, _R.HALTED, _R.FAILED}),
    _R.PREPARING: frozenset({_R.QUEUED, _R.STARTING, _R.HALTING, _R.HALTED, _R.FAILED}),
    _R.STARTING: frozenset({_R.RUNNING, _R.HALTING, _R.HALTED, _R.SUCCEEDED, _R.FAILED, _R.RESUMING, _R.QUEUED}),
    _R.RUNNING: frozenset({_R.HALTING, _R.HALTED, _R.SUCCEEDED, _R.FAILED, _R.RESUMING}),
    _R.HALTING: frozenset({_R.HALTED, _R.SUCCEEDED, _R.FAILED}),
    _R.RESUMING: frozenset({_R.QUEUED, _R.PREPARING, _R.STARTING, _R.HALTING, _R.HALTED, _R.FAILED}),
    _R.HALTED: frozenset({_R.RESUMING}),
    _R.FAILED: frozenset({_R.RESUMING}),
    _R.SUCCEEDED: frozenset(),
}
"""Which state may follow which. The supervisor refuses anything else."""
