"""What is a limit of each health rule, in what unit, and what is done about it when nobody says otherwise. Pure data.

One table: the job file is checked against it (`config.health`), the rules are run with it (`orchestrator.health`) and
a person reads it (`orchestrator.health.limits.describe`). Where contracts.md (Watchdog defaults) names a figure, that
is the figure; where it is silent the choice is explained beside it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workloads.contract.health import SHARP, Rule, Rung

NOTE, DUMP, HALT, RESTART = Rung.NOTE, Rung.DUMP, Rung.HALT, Rung.RESTART

VERDICT_STEPS, ACT_STEPS = 5, 20
"""A stall is told at 5 x the run's median step and acted upon at 20 x, where these are longer than the seconds."""

PHASE_LIMITS_S: Mapping[str, float] = {
    "starting": 300.0,
    "loading": 600.0,
    "compiling": 1200.0,
    "evaluating": 1200.0,
    "checkpointing": 600.0,
}
"""Phases with a clock of their own. `progress` is the rule no_step; `halting` has the clocks of the halt."""

GATE_ENTROPY_MIN, GATE_MAX, GATE_COLLAPSE_MAX = 0.2, 0.9, 0.5


@dataclass(frozen=True)
class RuleDefault:
    """`limit`: where it is crossed, noted and dumped; `act_limit`: where it may be ended (None: at `limit`).

    `in_a_row`: beats that must cross it in a row (None: it is a matter of seconds). `clear_s`: observed seconds it
    must stay away before its episode is over. `sharpest`: the last rung that a job file may ask for.
    """

    what: str
    limit: float | None
    unit: str
    ladder: tuple[Rung, ...]
    act_limit: float | None = None
    in_a_row: int | None = None
    clear_s: float = 5.0
    sharpest: Rung = Rung.GIVE_UP

    @property
    def sharp(self) -> bool:
        return any(r in SHARP for r in self.ladder)


TABLE: Mapping[Rule, RuleDefault] = {
    # the runtime beats every 30 s in any phase, whatever the main thread does: three beats were missed. It is ended
    # for that only while it trains: compilers and loaders hold the interpreter for minutes, and have phase limits
    Rule.NO_BEAT: RuleDefault("no heartbeat", 90.0, "s", (NOTE, DUMP, RESTART), act_limit=180.0),
    Rule.NO_STEP: RuleDefault("no step, training", 30.0, "s", (NOTE, DUMP, RESTART), act_limit=180.0),
    # the limit is where it is dumped. A restart throws away a save or an evaluation that is only slow, so that it
    # waits for twice as long
    Rule.PHASE_OVER: RuleDefault("a phase over its limit", None, "s", (NOTE, DUMP, RESTART)),
    # a restart from a deterministic checkpoint comes to the same NaN: a person has to look
    Rule.NAN: RuleDefault("loss or grad_norm is NaN or infinite", None, "", (NOTE, DUMP, HALT), in_a_row=3),
    # most runs come back from a spike by themselves
    Rule.LOSS_SPIKE: RuleDefault("loss far above its recent median", 8.0, "robust z", (NOTE,), in_a_row=3, clear_s=30),
    Rule.SLOW: RuleDefault("tokens/s below the run's own median", 0.7, "of the median", (NOTE,), clear_s=60),
    # it may be the meter: that steps are made is told by no_step, and a run that makes them is not ended for this
    Rule.ZERO_THROUGHPUT: RuleDefault("toks_per_s is not above", 0.0, "tokens/s", (NOTE, DUMP), in_a_row=4),
    Rule.DATA_STALL: RuleDefault("share of fetching in the step", 0.5, "of the step", (NOTE,), clear_s=60),
    # what a gate should do is for the researcher to say: `ladder: [note, dump, halt]` where it is worth an end
    Rule.GATE_COLLAPSE: RuleDefault("gate entropy, largest gate, collapsed share", None, "", (NOTE, DUMP), in_a_row=3),
    Rule.GRAD_ZERO: RuleDefault("grad_norm is 0", None, "", (NOTE, DUMP), in_a_row=1),
    Rule.BEHIND: RuleDefault("steps the others made long ago", 60.0, "s", (NOTE, DUMP)),
    # the end of a rank is told by its record within 2 s and is the supervisor's; this is a rank that is proved gone
    # and of which no record came (its shim went with it, or the disk is full)
    Rule.GONE: RuleDefault("process gone without a record", 2.0, "s", (NOTE, DUMP, RESTART), act_limit=60.0),
    Rule.STOPPED: RuleDefault("process stopped (T)", 10.0, "s", (NOTE, DUMP)),
    Rule.STUCK: RuleDefault("process in uninterruptible sleep (D)", 30.0, "s", (NOTE, DUMP)),
    # unreachable is not dead
    Rule.POD_SILENT: RuleDefault("pod has not answered", 60.0, "s", (NOTE,), sharpest=NOTE),
    # a restart on the same pod would find one GPU less
    Rule.GPU_MISSING: RuleDefault("a leased GPU is not there", 10.0, "s", (NOTE, DUMP, HALT), clear_s=60),
    Rule.XID: RuleDefault("the driver told an XID", None, "", (NOTE, DUMP, HALT), clear_s=60),
    # contained by the driver, or followed by an XID; a run on which it matters says so in its ladder
    Rule.ECC: RuleDefault("uncorrected ECC errors grew by more than", 0.0, "errors", (NOTE,), clear_s=60),
    # 5 % of the disk where that is less: a volume of 100 TB is not full at its last 5 TB
    Rule.DISK_LOW: RuleDefault("free on the run's disk", 10.0, "GiB", (NOTE,), clear_s=60, sharpest=HALT),
    Rule.SHM_LOW: RuleDefault("free share of /dev/shm", 0.1, "of it", (NOTE,), clear_s=60, sharpest=DUMP),
    # no decision uses wall time; a person who reads times should know
    Rule.CLOCK_STEP: RuleDefault("the wall clock jumped", 2.0, "s", (NOTE,), clear_s=60, sharpest=NOTE),
    # the limits are the guard's (`health.guard`), which acts on the pod within half a second; here it is only told
    Rule.GPU_MEMORY: RuleDefault("GPU memory above the guard's limit", None, "MiB", (NOTE,), clear_s=60, sharpest=DUMP),
    Rule.HOST_MEMORY: RuleDefault("memory above the guard's limit", None, "of it", (NOTE,), clear_s=60, sharpest=DUMP),
}  # fmt: skip
