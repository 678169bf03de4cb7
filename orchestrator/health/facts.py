"""What was seen at one look, and what is to be done about it: the vocabulary of health. Pure data.

`None` and `unknown` mean that it could not be seen, which is never a reason to end anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from workloads.contract.beats import Beat
from workloads.contract.health import Rule, Rung

OF_THE_GANG = frozenset(
    {
        Rule.NO_BEAT, Rule.NO_STEP, Rule.PHASE_OVER, Rule.NAN, Rule.LOSS_SPIKE, Rule.SLOW, Rule.ZERO_THROUGHPUT,
        Rule.DATA_STALL, Rule.GATE_COLLAPSE, Rule.GRAD_ZERO, Rule.BEHIND,
    }
)  # fmt: skip
"""Rules of which one sick rank makes all of them sick: one episode, led by the rank that is worst off."""


UNWRITABLE = "unwritable"
"""Tag of the disk_low finding of a run directory that takes no line."""


class ProcessState(StrEnum):
    RUNNING = "running"  # R, S, I
    STOPPED = "stopped"  # T
    TRACED = "traced"  # t: a debugger holds it
    STUCK = "stuck"  # D
    DEAD = "dead"  # gone, or Z
    ABSENT = "absent"  # not started yet
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RankFacts:
    """One rank of the newest attempt. `beats`: complete lines that are new since the look before, oldest first."""

    rank: int
    pod: str
    process: ProcessState
    beats: tuple[Beat, ...] = ()
    finished: bool = False  # its record says how it ended


@dataclass(frozen=True)
class GpuFacts:
    """`present` None: it could not be asked. Memory in MiB."""

    uuid: str
    present: bool | None = None
    mem_used_mib: float | None = None
    mem_total_mib: float | None = None
    ecc_uncorrected: int | None = None  # volatile, aggregate of the card
    xids: tuple[int, ...] = ()  # told by the kernel since the attempt began


@dataclass(frozen=True)
class PodFacts:
    """What is looked at every few seconds on a pod; `age_s`: how old it is (a pod that does not answer ages)."""

    pod: str
    age_s: float = 0.0
    disk_free_bytes: int | None = None  # where the run directory lies
    disk_total_bytes: int | None = None
    writable: bool | None = None  # the run directory takes a line
    shm_free_bytes: int | None = None
    shm_total_bytes: int | None = None
    mem_used_bytes: int | None = None  # of the smallest limit that holds: cgroup or machine
    mem_limit_bytes: int | None = None
    gpus: tuple[GpuFacts, ...] = ()  # those leased by this run
    wall_minus_mono_s: float | None = None  # a jump of it is a step of the clock
    guard: tuple[tuple[Rule, str], ...] = ()  # what a guard on the pod did since the last look, in its words


@dataclass(frozen=True)
class Finding:
    """A rule that is crossed at this look. `why`: one sentence with the figures, `limit` and what it is about.

    `level`: -1 is only ever noted; 0: the first limit, where it is noted and dumped; 1: the second, where it may be
    ended. `others`: further ranks of which the same is true; a rule like that is one episode of the whole gang.
    """

    rule: Rule
    why: str
    rank: int | None = None
    pod: str | None = None
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    since_s: float = 0.0  # how long it has been crossed
    level: int = 0
    others: tuple[int, ...] = ()
    tag: str = ""  # which card, which XID: an episode of its own

    @property
    def key(self) -> tuple[Rule, int | None, str | None, str]:
        """An episode is one of these, from crossed to clear."""
        if self.rule in OF_THE_GANG:
            return self.rule, None, None, self.tag
        return self.rule, self.rank, self.pod, self.tag


@dataclass(frozen=True)
class Act:
    """A rung to take now."""

    rung: Rung
    finding: Finding
    suppressed: bool = False  # mode `observe`, or no budget left: said, not done


@dataclass(frozen=True)
class Cleared:
    """An episode that ended by itself."""

    finding: Finding
    after_s: float
