"""The words of health: rules, rungs, modes, and what `.anomaly_type` says. This file imports nothing of ours.

A rule is crossed by figures; a rung is what is done about it. Spelled in job files (`health.rules.<rule>`), events
(`what: health`, data `rule`, `rung`) and in what `orch why` prints. Golden: tests/golden/health.json.
"""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """What may be wrong. Of a rank, unless the comment says pod."""

    NO_BEAT = "no_beat"
    NO_STEP = "no_step"
    PHASE_OVER = "phase_over"
    NAN = "nan"
    LOSS_SPIKE = "loss_spike"
    SLOW = "slow"
    ZERO_THROUGHPUT = "zero_throughput"
    DATA_STALL = "data_stall"
    GATE_COLLAPSE = "gate_collapse"
    GRAD_ZERO = "grad_zero"
    BEHIND = "behind"
    GONE = "gone"
    STOPPED = "stopped"  # state T
    STUCK = "stuck"  # state D
    POD_SILENT = "pod_silent"  # pod
    GPU_MISSING = "gpu_missing"  # pod
    XID = "xid"  # pod
    ECC = "ecc"  # pod
    DISK_LOW = "disk_low"  # pod
    SHM_LOW = "shm_low"  # pod
    CLOCK_STEP = "clock_step"  # pod
    GPU_MEMORY = "gpu_memory"  # pod: the guard
    HOST_MEMORY = "host_memory"  # pod: the guard


class Rung(StrEnum):
    """What is done, each rung at most once an episode; `kill`, `restart`, `give_up` only ever behind a dump."""

    NOTE = "note"
    DUMP = "dump"
    HALT = "halt"  # `.HALT` with `.anomaly_type` beside it: a checkpoint, then the end
    KILL = "kill"  # the ranks of this attempt, at once; what follows is the supervisor's (restart budget)
    RESTART = "restart"  # kill, then the newest verified checkpoint, within the restart budget
    GIVE_UP = "give_up"  # kill, and the run has failed


class Mode(StrEnum):
    OFF = "off"
    OBSERVE = "observe"  # note and dump, nothing more
    ACT = "act"


SHARP = frozenset({Rung.HALT, Rung.KILL, Rung.RESTART, Rung.GIVE_UP})
"""Rungs that end something: preceded by a dump, never taken for what could not be seen."""

ANOMALY: dict[Rule, str] = {
    Rule.NO_BEAT: "stall",
    Rule.NO_STEP: "stall",
    Rule.PHASE_OVER: "stall",
    Rule.NAN: "nan",
    Rule.LOSS_SPIKE: "loss_spike",
    Rule.ZERO_THROUGHPUT: "zero_toks",
    Rule.GATE_COLLAPSE: "gate_collapse",
    Rule.GRAD_ZERO: "grad_zero",
    Rule.GPU_MEMORY: "gpu_oom",
    Rule.HOST_MEMORY: "host_oom",
}
"""What is written to `.anomaly_type` for scripts that read it; the rule's own name for the others."""


def anomaly_of(rule: Rule) -> str:
    return ANOMALY.get(rule, rule.value)
