"""A monitor, a clock that is turned by hand, and ranks that do what a test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.health.facts import Act, Cleared, PodFacts, ProcessState, RankFacts
from orchestrator.health.monitor import Monitor
from workloads.contract.beats import Beat
from workloads.contract.config.health import HealthSpec, health_of
from workloads.contract.health import SHARP, Rule, Rung
from workloads.contract.states import Phase

T, D, DEAD, RUNNING = ProcessState.STOPPED, ProcessState.STUCK, ProcessState.DEAD, ProcessState.RUNNING
LOOK_S = 0.5


def spec_of(**health: Any) -> HealthSpec:
    return health_of({"health": health})


@dataclass
class Bedside:
    """`step_s`: of a rank that trains; `frozen`: ranks that make no step; `mute`: ranks that tell nothing."""

    ranks: int = 1
    spec: HealthSpec = field(default_factory=HealthSpec)
    step_s: float = 1.0
    beats_expected: bool = True
    any_step_compiles: bool = False
    now: float = 5000.0
    wall: float = 1.8e9
    attempt: int = 1
    phase: Phase = Phase.PROGRESS
    frozen: set[int] = field(default_factory=set)
    mute: set[int] = field(default_factory=set)
    process: dict[int, ProcessState] = field(default_factory=dict)
    phases: dict[int, Phase] = field(default_factory=dict)
    pod: PodFacts | None = field(default_factory=lambda: PodFacts("p", writable=True))
    figures: dict[str, Any] = field(default_factory=dict)
    own: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    stepped: float = 0.0  # when a newer step was told last
    seq: int = 0
    news: list[tuple[float, Act | Cleared]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.monitor = Monitor(
            self.spec, self.ranks, beats_expected=self.beats_expected, any_step_compiles=self.any_step_compiles
        )
        self._beat_at: dict[int, tuple[float, Phase]] = {}

    def run(self, seconds: float, look_s: float = LOOK_S) -> list[Act | Cleared]:
        """Looks for this long; what they said."""
        until, first = self.now + seconds - 1e-9, len(self.news)
        while self.now < until:
            self.now += look_s
            self.wall += look_s
            self.look([self._facts(rank, look_s) for rank in range(self.ranks)])
        return [n for _, n in self.news[first:]]

    def sleep(self, seconds: float) -> None:
        """The observer does not look; the ranks go on."""
        self.now += seconds
        self.wall += seconds
        for rank in set(range(self.ranks)) - self.frozen:
            self.steps[rank] = self.steps.get(rank, 0.0) + seconds / self.step_s

    def look(self, facts: list[RankFacts]) -> None:
        pods = [self.pod] if self.pod is not None else []
        for item in self.monitor.look(self.now, facts, pods, self.attempt):
            self.news.append((self.now, item))

    def tell(self, rank: int = 0, times: int = 1, **figures: Any) -> list[Act | Cleared]:
        """Beats of one rank, a look and a second each, with these figures; the others beat as usual."""
        first = len(self.news)
        for _ in range(times):
            self.own[rank] = figures
            self.run(1.0)
        self.own.pop(rank)
        return [n for _, n in self.news[first:]]

    def _facts(self, rank: int, dt: float) -> RankFacts:
        process = self.process.get(rank, RUNNING)
        phase = self.phases.get(rank, self.phase)
        if rank not in self.frozen and phase is Phase.PROGRESS:
            self.steps[rank] = self.steps.get(rank, 0.0) + dt / self.step_s
        beats = self._beats(rank, phase) if rank not in self.mute and process in (RUNNING, D) else ()
        return RankFacts(rank, "p", process, beats)

    def _beats(self, rank: int, phase: Phase) -> tuple[Beat, ...]:
        at, was = self._beat_at.get(rank, (-1e9, None))
        frozen = rank in self.frozen or phase is not Phase.PROGRESS
        if phase is was and self.now - at < (30.0 if frozen else max(1.0, self.step_s)) - 1e-9:
            return ()
        self._beat_at[rank] = (self.now, phase)
        self.seq += 1
        fields: dict[str, Any] = {"step": int(self.steps.get(rank, 0.0))}
        if not frozen:
            self.stepped = self.now
        if not frozen:
            fields |= {"loss": 2.0, "grad_norm": 1.0, "toks_per_s": 1000.0, "step_time_s": self.step_s}
            fields |= {**self.figures, **self.own.get(rank, {})}
        return (Beat(self.seq, self.wall, phase, rank, self.ranks, self.attempt, fields),)


def rungs(news: list[Act | Cleared], rule: Rule) -> list[Rung]:
    """What was done about `rule`, suppressed acts left out."""
    return [n.rung for n in news if isinstance(n, Act) and n.finding.rule is rule and not n.suppressed]


def why(news: list[Act | Cleared], rule: Rule, rung: Rung = Rung.NOTE) -> str:
    return next(n.finding.why for n in news if isinstance(n, Act) and n.finding.rule is rule and n.rung is rung)


def cleared(news: list[Act | Cleared]) -> list[Rule]:
    return [n.finding.rule for n in news if isinstance(n, Cleared)]


def sharp(news: list[Act | Cleared]) -> list[Act]:
    return [n for n in news if isinstance(n, Act) and n.rung in SHARP and not n.suppressed]


def said(news: list[Act | Cleared]) -> Mapping[Rule, list[Rung]]:
    rules = dict.fromkeys(n.finding.rule for n in news if isinstance(n, Act))
    return {rule: rungs(news, rule) for rule in rules}
