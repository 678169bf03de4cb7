"""The whole: what was seen at a look in, what is to be done out. Pure; `now` is any monotonic clock.

    monitor = Monitor(spec.health, world_size, beats_expected=spec.kind != "command")
    for act in monitor.look(time.monotonic(), ranks, pods, attempt): ...

Called by the supervisor while a run is starting or running (not while it halts: the halt has clocks of its own), and by
`orch watch --dir`. Nothing here needs to survive: a new observer begins with new ages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.health import podrules, rules
from orchestrator.health.facts import Act, Cleared, Finding, PodFacts, ProcessState, RankFacts
from orchestrator.health.gang import Gang
from orchestrator.health.ladder import Key, Ladder
from orchestrator.health.limits import Setting, settings
from orchestrator.health.podtrack import PodTrack
from orchestrator.health.track import RankTrack
from workloads.contract.config.health import HealthSpec
from workloads.contract.health import Mode, Rule
from workloads.contract.states import Phase

MAX_GAP_S = 3.0
"""What a gap between two looks counts for: looks are half a second apart, and five seconds with a dump between."""


@dataclass
class Monitor:
    spec: HealthSpec
    world_size: int
    beats_expected: bool = False
    """ranks are known to beat (orch's own kinds); else one that never did is not missed"""
    any_step_compiles: bool = False
    """its steps are not alike, and any of them may compile first (cells of a matrix, turns of a conversation)"""
    lines_lost: bool = False
    """an observer before this one has told that the run directory took no line in this attempt"""
    settings: dict[Rule, Setting] = field(init=False)
    tracks: dict[int, RankTrack] = field(default_factory=dict)
    pods: dict[str, PodTrack] = field(default_factory=dict)
    attempt: int = -1
    t: float = 0.0  # observed seconds
    _last: float | None = None
    _saw_it_begin: bool = False
    _ladder: Ladder = field(init=False)

    def __post_init__(self) -> None:
        self.settings = settings(self.spec)
        self._ladder = Ladder(self.settings, self.spec.dumps_per_hour)

    def look(
        self, now: float, ranks: Sequence[RankFacts], pods: Sequence[PodFacts], attempt: int
    ) -> list[Act | Cleared]:
        """Everything that is due at this look, mildest first within an episode."""
        elapsed = max(0.0, now - self._last) if self._last is not None else 0.0
        self._last = now
        if attempt != self.attempt:
            self._saw_it_begin = 0 < self.attempt < attempt
            self.attempt, elapsed = attempt, 0.0
            self.tracks, self.pods = {}, {}
            self._ladder.new_attempt()
        dt = min(elapsed, MAX_GAP_S)
        self.t += dt
        if self.spec.mode is Mode.OFF:
            return []
        for facts in pods:
            self.pods.setdefault(facts.pod, PodTrack(facts.pod)).take(facts, dt)
        for pod in self.pods.keys() - {facts.pod for facts in pods}:
            self.pods[pod].missed(dt)
        for rank in ranks:
            self._take(rank, dt, gap=elapsed > MAX_GAP_S)
        busy = self._wait_for_each_other()
        return self._ladder.step(self.t, self._findings(busy), self._held)

    def begin_again(self) -> None:
        """The run directory could not be used until now: what was found is looked for anew, in observed time."""
        for track in self.tracks.values():
            track.begin_again()
        self._ladder.new_attempt()

    def _take(self, facts: RankFacts, dt: float, *, gap: bool) -> None:
        if (track := self.tracks.get(facts.rank)) is None:
            gap = True
            # one that runs already when it is first looked at may be in any phase until it tells
            joined = not self._saw_it_begin
            track = self.tracks[facts.rank] = RankTrack(facts.rank, joined=joined, unsure=joined)
            track.doubted = self.lines_lost and joined
        pod = self.pods.get(facts.pod)
        deaf = pod is not None and pod.facts.writable is False
        track.take(facts, dt, attempt=self.attempt, gap=gap, deaf=deaf)

    def _wait_for_each_other(self) -> bool:
        """While one rank saves, evaluates or compiles (True), the others may wait for it: none is without a step."""
        living = [t for t in self.tracks.values() if not t.finished]
        if any(t.process is ProcessState.TRACED and not t.unseen for t in living):
            for track in living:
                track.wait()
        busy = any(t.busy and (t.spoke or self.beats_expected) for t in living)
        for track in living if busy else ():
            track.rest()
        front = max((t.step for t in living if t.step is not None and t.phase is Phase.PROGRESS), default=None)
        for track in living:
            track.look_ahead(front)
        return busy

    def _findings(self, busy: bool) -> list[Finding]:
        gang = Gang(
            tuple(t for _, t in sorted(self.tracks.items()) if not t.finished),
            frozenset(p.pod for p in self.pods.values() if p.takes_lines),
            self.beats_expected,
            self.any_step_compiles,
            busy,
        )
        found: list[Finding] = []
        for rule, setting in self.settings.items():
            if setting.mode is Mode.OFF:
                continue
            if rule in rules.RULES:
                found += rules.of_gang(rule, setting, gang, self._leader(rule))
            elif rule in podrules.RULES:
                for pod in self.pods.values():
                    found += podrules.RULES[rule](setting, pod, self.spec.guard)
        return found

    def _leader(self, rule: Rule) -> int | None:
        episode = self._ladder.episodes.get((rule, None, None, ""))
        return episode.finding.rank if episode else None

    def _held(self, key: Key) -> bool:
        """Nothing could be seen of what the episode is about."""
        rule, rank, pod, _ = key
        if rank is None and pod is not None and rule is not Rule.POD_SILENT:
            return pod not in self.pods or self.pods[pod].stale
        if rank is not None and rank in self.tracks:
            return self.tracks[rank].unseen and not self.tracks[rank].finished
        return False
