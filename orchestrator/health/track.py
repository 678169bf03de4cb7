"""What is remembered of one rank of one attempt: ages, medians, counts. Bounded, no clock of its own.

Ages are *observed* time: seconds in which this observer looked and the rank could have been heard. A gap between two
looks (observer asleep, stopped, started again) counts for a few seconds; time in which the run directory takes no line
or the pod cannot be asked does not count. A beat's own `ts` is not used: wall clocks step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median

from orchestrator.health.facts import ProcessState, RankFacts
from workloads.contract.beats import Beat
from workloads.contract.healthtable import GATE_COLLAPSE_MAX, GATE_ENTROPY_MIN, GATE_MAX
from workloads.contract.states import Phase

STEP_SAMPLES = 64
FEW_SAMPLES = 5
"""Below this many the largest one stands for the median: the first steps compile, warm up, fill caches."""
MUCH_LONGER, LOOK_ERROR_S = 1.5, 1.0
RECENT, PAST = 16, 256
BLOCK, PACE_ENOUGH = 8, 8
"""Tokens/s are compared by blocks of beats, 256 of them: half an hour of beats a second apart."""
LOSS_WINDOW, LOSS_ENOUGH = 64, 32
SLOW_PHASES = frozenset({Phase.STARTING, Phase.LOADING, Phase.COMPILING, Phase.EVALUATING, Phase.CHECKPOINTING})
HALT_WAIT_S = 630.0
"""A rank that halts saves for at most this long; the clocks of the halt are the supervisor's."""
KEEPALIVE_S = 25.0
"""A bare line this long after the one before it is the runtime's, which comes after 30 s without a beat."""
BARE = frozenset({"step", "steps"})
_HEARD = frozenset(ProcessState) - {ProcessState.ABSENT, ProcessState.UNKNOWN}


def bad(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


@dataclass
class Counts:
    """Beats in a row that cross something; a beat that does not tell the figure neither counts nor clears."""

    loss_bad: int = 0
    grad_bad: int = 0
    zero_rate: int = 0
    zero_grad: int = 0
    gates: int = 0
    bad_from: int | None = None
    """the step of the first beat of those that now are without a finite loss or gradient"""


@dataclass
class RankTrack:
    rank: int
    pod: str = ""
    process: ProcessState = ProcessState.UNKNOWN
    finished: bool = False
    t: float = 0.0  # observed seconds in which a beat could have been read
    seen_t: float = 0.0  # observed seconds in which its process could be looked at
    unseen: bool = True  # at this look nobody could tell of its process
    blind: bool = True  # nor could a beat have been read
    unsure: bool = False  # lines may have been missed since its last beat: it may be in another phase by now
    joined: bool = False  # it made steps before this observer looked: what they take may never have been read
    doubted: bool = False  # the beats of its first look are no proof that none was lost after them
    phase: Phase = Phase.STARTING
    phase_at: float = 0.0
    beat_at: float | None = None
    step: int | None = None
    step_at: float = 0.0  # the newest step, or when it began to train again
    state_at: float = 0.0  # since when its process is in this state, on seen_t
    moved_at: float = 0.0  # its newest step or change of phase, on seen_t
    counts: Counts = field(default_factory=Counts)
    newest: Beat | None = None  # with figures
    target: tuple[int, float] | None = None  # a step that others have made, and since when
    reported: deque[float] = field(default_factory=lambda: deque(maxlen=STEP_SAMPLES))
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=STEP_SAMPLES))
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSS_WINDOW + RECENT))
    rates: list[float] = field(default_factory=list)  # of the block that is not full yet
    past: deque[float] = field(default_factory=lambda: deque(maxlen=PAST))  # medians of blocks of tokens/s
    paces: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=PAST))
    """(t, share of its own median tokens/s), one a block"""
    fetches: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    _losses_told: int = 0
    _judged: int = 0
    _z: float | None = None
    _typical: float | None = None
    _clean_from: float | None = None  # t of the newest step, when nothing was missed since

    @property
    def spoke(self) -> bool:
        return self.beat_at is not None

    @property
    def step_s(self) -> float | None:
        """The typical step of this rank as it reports it, or as it was measured where that is much longer (a program
        that tells its forward pass); None: not known yet."""
        if self._typical is None and (self.reported or self.measured):
            told = typical(self.reported) if self.reported else 0.0
            seen = typical(self.measured) if self.measured else 0.0
            self._typical = seen if seen > MUCH_LONGER * told + LOOK_ERROR_S else told or seen
        return self._typical

    def age(self, at: float) -> float:
        return self.t - at

    def take(self, facts: RankFacts, dt: float, *, attempt: int, gap: bool, deaf: bool) -> None:
        """`dt`: observed seconds since the last look; `gap`: more went by, or there was none; `deaf`: the run directory
        takes no line. When a step that is told after a gap was made is not known: no step is measured from it."""
        self.pod, self.finished = facts.pod, facts.finished
        self.unseen = facts.process not in _HEARD
        if not self.unseen:
            self.seen_t += dt
            if facts.process != self.process:
                self.process, self.state_at = facts.process, self.seen_t
        self.blind = deaf or self.unseen
        if facts.process is ProcessState.ABSENT:
            self.joined = self.unsure = False
        self.unsure = self.unsure or deaf
        if not self.blind:
            self.t += dt
        if gap or self.blind:
            self._clean_from = None
        for beat in facts.beats[-PAST:]:  # a first look brings the whole past: its end is enough
            if beat.attempt == attempt and beat.rank == self.rank:
                self._beat(beat)
        if gap:
            self._clean_from = None
        if self.doubted:
            self.doubted, self.unsure = False, True

    def _beat(self, beat: Beat) -> None:
        before, self.beat_at, self.unsure = self.beat_at, self.t, False
        if beat.msg in (Phase.STARTING, Phase.LOADING):
            self.joined = False
        same = beat.msg == self.phase
        if not same:
            self.phase, self.phase_at, self.step_at = beat.msg, self.t, self.t
            self.moved_at = self.seen_t
            self._clean_from, self.target = None, None
        step = beat.get("step")
        if step is not None and step != self.step:
            if same and before is not None and self.t - before >= KEEPALIVE_S and beat.fields.keys() <= BARE:
                self._told_late(step, before)
            else:
                self._advance(step)
        if beat.msg is Phase.PROGRESS:
            self._figures(beat)

    def _advance(self, step: int) -> None:
        if self._clean_from is not None and self.step is not None and step > self.step and self.t > self._clean_from:
            self.measured.append((self.t - self._clean_from) / (step - self.step))
            self._typical = None
        self.step, self.step_at, self._clean_from = step, self.t, self.t
        self.moved_at = self.seen_t

    def _told_late(self, step: int, before: float) -> None:
        """A line that only keeps alive names steps made within a second of the line before it, or it had been written
        then: a hang does not begin with it."""
        self.step, self.step_at, self._clean_from = step, max(self.step_at, before + 1.0), None

    @property
    def busy(self) -> bool:
        """It does something else than training, for which the other ranks may have to wait."""
        if self.phase is Phase.HALTING:
            return self.age(self.phase_at) < HALT_WAIT_S
        return self.phase in SLOW_PHASES

    def rest(self) -> None:
        """Somebody of the gang saves, evaluates or compiles: the others wait for it."""
        self.step_at, self._clean_from, self.target = self.t, None, None

    def begin_again(self) -> None:
        """Nobody could have heard it for a while: its ages begin now, what is known of its pace stays."""
        self.state_at = self.seen_t
        self.wait()

    def wait(self) -> None:
        """Somebody holds the gang with a debugger: no silence is counted."""
        self.beat_at = None if self.beat_at is None else self.t
        self.phase_at = self.t
        self.moved_at = self.seen_t
        self.rest()

    def _figures(self, beat: Beat) -> None:
        get = beat.fields.get
        if "loss" in beat.fields or "toks_per_s" in beat.fields or "grad_norm" in beat.fields:
            self.newest = beat
        if (step_s := get("step_time_s")) is not None and 0 < step_s < math.inf:
            self.reported.append(step_s)
            self._typical = None
            if (fetch_s := get("dt_fetch_s")) is not None and 0 <= fetch_s < math.inf:
                self.fetches.append((fetch_s, step_s))
        counts = self.counts
        if (loss := get("loss")) is not None:
            counts.loss_bad = counts.loss_bad + 1 if bad(loss) else 0
            if math.isfinite(loss):
                self.losses.append(loss)
                self._losses_told += 1
        if (grad := get("grad_norm")) is not None:
            counts.grad_bad = counts.grad_bad + 1 if bad(grad) else 0
            counts.zero_grad = counts.zero_grad + 1 if grad == 0 else 0
        if not (counts.loss_bad or counts.grad_bad):
            counts.bad_from = None
        elif counts.bad_from is None:
            counts.bad_from = get("step")
        if (rate := get("toks_per_s")) is not None and math.isfinite(rate):
            counts.zero_rate = counts.zero_rate + 1 if rate <= 0 else 0
            self._rate(rate)
        gates = [get(n) for n in ("gate_entropy_mean", "gate_max_gate", "gate_collapse_frac")]
        if any(g is not None for g in gates):
            counts.gates = counts.gates + 1 if gates_crossed(*gates) else 0

    def _rate(self, rate: float) -> None:
        self.rates.append(rate)
        if len(self.rates) < BLOCK:
            return
        block = median(self.rates)
        self.rates.clear()
        self.past.append(block)
        if len(self.past) >= PACE_ENOUGH and (usual := median(self.past)) > 0:
            self.paces.append((self.t, block / usual))

    def look_ahead(self, front: int | None) -> None:
        """`front`: the newest step of any rank. Remember one that this rank has not made, and since when."""
        if self.phase is not Phase.PROGRESS or self.step is None or front is None:
            self.target = None
        elif self.target is None or self.step >= self.target[0]:
            self.target = (front, self.t) if front > self.step else None

    def spike(self, in_a_row: int, limit: float) -> float | None:
        """The newest loss as a robust z, when it and those before it, `in_a_row` in all, are above `limit`."""
        if self._judged != self._losses_told:
            self._judged, self._z, losses = self._losses_told, None, list(self.losses)
            newest = range(len(losses) - 1, len(losses) - 1 - min(in_a_row, RECENT), -1)
            if newest[-1] >= LOSS_ENOUGH:
                zs = (robust_z(losses[i], losses[max(0, i - LOSS_WINDOW) : i]) for i in newest)
                high = list(takewhile(lambda z: z > limit, zs))
                self._z = high[0] if len(high) == len(newest) else None
        return self._z


def typical(samples: deque[float]) -> float:
    return median(samples) if len(samples) >= FEW_SAMPLES else max(samples)


def robust_z(x: float, window: Sequence[float]) -> float:
    """How far above the median of `window`, in units of 1.4826 x MAD, which is the standard deviation of a normal one.

    A window that hardly varies (a converged run) is given 1 % of its median, so that a ripple is not a spike.
    """
    middle = median(window)
    spread = 1.4826 * median(abs(w - middle) for w in window)
    return (x - middle) / max(spread, 0.01 * abs(middle), 1e-9)


def gates_crossed(entropy: float | None, largest: float | None, collapsed: float | None) -> bool:
    return (
        (entropy is not None and entropy < GATE_ENTROPY_MIN)
        or (largest is not None and largest > GATE_MAX)
        or (collapsed is not None and collapsed > GATE_COLLAPSE_MAX)
    )
