"""What is remembered of one pod of one attempt. Bounded, no clock of its own. Called by `monitor`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orchestrator.health.facts import PodFacts

STALE_S = 30.0
"""Facts older than this say nothing about now: what they crossed neither goes on nor ends."""
PROOF_S = 60.0
JUMP_MIN_S = 0.5
TOLD_FOR_S = 60.0
MAX_GPUS = 64
MAX_XIDS = 32


@dataclass
class PodTrack:
    pod: str
    facts: PodFacts = field(init=False)
    t: float = 0.0  # observed seconds with facts that were new enough
    silent_s: float = 0.0  # observed seconds without an answer
    missing_s: dict[str, float] = field(default_factory=dict)  # GPU -> observed seconds it was seen to be missing
    ecc_base: dict[str, int] = field(default_factory=dict)
    jump: tuple[float, float] | None = None  # seconds the wall clock jumped, and when (t)
    _offset: float | None = None

    def __post_init__(self) -> None:
        self.facts = PodFacts(self.pod)

    @property
    def stale(self) -> bool:
        return self.facts.age_s > STALE_S

    @property
    def takes_lines(self) -> bool:
        return self.facts.writable is True and self.facts.age_s <= PROOF_S

    def missed(self, dt: float) -> None:
        """Nobody said anything of it at this look."""
        self.take(replace(self.facts, age_s=self.facts.age_s + dt, guard=()), dt)

    def take(self, facts: PodFacts, dt: float) -> None:
        answered = facts.age_s <= self.facts.age_s + dt / 2  # else they are the old ones, grown older
        self.silent_s = 0.0 if answered else self.silent_s + dt
        self.facts = facts
        if self.stale:
            return
        self.t += dt
        for gpu in facts.gpus[:MAX_GPUS]:
            if gpu.present is True:
                self.missing_s.pop(gpu.uuid, None)
            elif gpu.present is False:
                self.missing_s[gpu.uuid] = self.missing_s.get(gpu.uuid, -dt) + dt
            if gpu.ecc_uncorrected is not None and len(self.ecc_base) < MAX_GPUS:
                self.ecc_base.setdefault(gpu.uuid, gpu.ecc_uncorrected)
        if facts.wall_minus_mono_s is not None:
            if self._offset is not None and abs(facts.wall_minus_mono_s - self._offset) > JUMP_MIN_S:
                self.jump = (facts.wall_minus_mono_s - self._offset, self.t)
            self._offset = facts.wall_minus_mono_s
        if self.jump is not None and self.t - self.jump[1] > TOLD_FOR_S:
            self.jump = None
