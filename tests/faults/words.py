"""The words of the fault table: what is broken, when, and what a cell of it needs of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.stand import Stand


class Fault(StrEnum):
    """What is done to the run. Each is done for real: a signal, a full disk, a changed byte."""

    # to a rank
    RANK_KILLED = "rank-killed"  # SIGKILL
    RANK_SEGFAULT = "rank-segfault"
    RANK_EXITS = "rank-exits"  # with a code of its own
    RANK_RAISES = "rank-raises"
    RANK_OOM = "rank-oom"  # killed by the kernel at a real memory limit
    RANK_STOPPED = "rank-stopped"  # SIGSTOP
    RANK_HANGS = "rank-hangs"  # sleeps in C; the GIL is free, the keepalive goes on
    RANK_HOLDS_GIL = "rank-holds-gil"  # not even the keepalive goes on
    RANK_NAN = "rank-nan"
    RANK_STALE = "rank-stale"  # a rank of an older attempt wants to commit
    RANK_LEAVES_CHILD = "rank-leaves-child"  # double-forked, session of its own
    CRASH_LOOP = "crash-loop"
    PEERS_DIE = "peers-die"  # every rank at once
    # to orch's own processes
    SHIM_KILLED = "shim-killed"
    SHIM_STOPPED = "shim-stopped"
    SUPERVISOR_KILLED = "supervisor-killed"
    SUPERVISOR_DIES_AGAIN = "supervisor-dies-again"  # at each of its file operations, one after the other
    SUPERVISOR_STOPPED = "supervisor-stopped"
    KEEPER_KILLED = "keeper-killed"
    AGENT_KILLED = "agent-killed"
    RAYLET_KILLED = "raylet-killed"
    GCS_KILLED = "gcs-killed"
    ALL_OF_ORCH_KILLED = "all-of-orch-killed"  # keeper and all of Ray
    # to the machine
    DISK_FULL = "disk-full"
    RANK_KILLED_DISK_FULL = "rank-killed-disk-full"
    RUN_READ_ONLY = "run-read-only"
    RUN_VANISHED = "run-vanished"  # and came back
    CLOCK_STEPPED = "clock-stepped"
    PID_REUSED = "pid-reused"
    REBOOTED = "rebooted"
    # to files
    CHECKPOINT_FLIPPED = "checkpoint-flipped"
    CHECKPOINT_CUT = "checkpoint-cut"
    CHECKPOINT_FILE_LOST = "checkpoint-file-lost"
    CHECKPOINT_SWAPPED = "checkpoint-swapped"
    CHECKPOINTS_ALL_BAD = "checkpoints-all-bad"
    HALT_REMOVED = "halt-removed"
    HALT_AGAIN = "halt-again"  # removed and made anew
    HALT_SYMLINK = "halt-symlink"
    HALT_FIFO = "halt-fifo"
    BEAT_TORN = "beat-torn"
    BEAT_GARBAGE = "beat-garbage"
    BEAT_FLOOD = "beat-flood"
    BEAT_REPLACED = "beat-replaced"  # by a directory
    EVENTS_TORN = "events-torn"
    # of people
    HALT = "halt"
    HALT_NOW = "halt-now"
    RESUME_TWICE = "resume-twice"


class When(StrEnum):
    """What the run was doing."""

    QUEUED = "queued"
    STARTING = "starting"
    LOADING = "loading"
    COMPILING = "compiling"
    TRAINING = "training"
    CHECKPOINTING = "checkpointing"
    EVALUATING = "evaluating"
    HALTING = "halting"
    BETWEEN = "between"  # attempts: one has ended, the next has not begun
    RESUMING = "resuming"  # the next attempt loads its checkpoint
    ENDED = "ended"
    WHOLE = "whole"  # the whole life of a run
    RAY = "full-stack"  # training, below the real keeper and Ray


BEFORE_A_STEP = (When.STARTING, When.LOADING, When.COMPILING)
IN_ATTEMPT = (*BEFORE_A_STEP, When.TRAINING, When.CHECKPOINTING, When.EVALUATING, When.HALTING, When.RESUMING)


@dataclass(frozen=True)
class Cell:
    """One fault at one moment. `play` brings the run there, does it, and asserts what this fault must lead to; what
    must hold after every fault is asserted by `tests.faults.invariants`."""

    fault: Fault
    when: When
    play: Callable[[Stand, When], None]
    root: bool = False
    """needs mounts or a memory limit"""
    full: bool = False
    """on the full stack: keeper, Ray, `orch`"""
    pids: bool = False
    """in a PID namespace of its own"""

    @property
    def name(self) -> str:
        return f"{self.fault}/{self.when}"


class CannotRun(Exception):
    """This machine cannot carry the cell; the text says why."""
