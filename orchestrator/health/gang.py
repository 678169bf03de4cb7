"""What the rules about ranks share: the gang they look at, and how a finding is made and worded. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.health.facts import Finding
from orchestrator.health.limits import Setting
from orchestrator.health.track import RankTrack

PROOF_S = 60.0
"""A beat of any rank of a pod within this long proves that its run directory takes lines."""


@dataclass(frozen=True)
class Gang:
    """The ranks of this attempt that have not ended, by rank; pods whose run directory was seen to take a line."""

    tracks: tuple[RankTrack, ...]
    open_pods: frozenset[str]
    beats_expected: bool
    any_step_compiles: bool = False
    busy: bool = False
    """one of them saves, evaluates or compiles, and the others may wait for it"""

    def provable(self, track: RankTrack) -> bool:
        """A beat of this rank could have been written and read: its silence is its own."""
        if track.blind:
            return False
        return track.pod in self.open_pods or any(
            t.pod == track.pod and t.beat_at is not None and t.age(t.beat_at) <= PROOF_S and not t.blind
            for t in self.tracks
        )


def secs(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def step_of(track: RankTrack) -> str:
    return "none" if track.step is None else str(track.step)


def finding(s: Setting, track: RankTrack, why: str, value: float, limit: float, since_s: float, level: int) -> Finding:
    return Finding(s.rule, why, track.rank, track.pod or None, value, limit, s.unit, max(0.0, since_s), level)
