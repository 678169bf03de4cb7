"""From findings to acts: episodes, hysteresis, one rung once an episode, budgets. Pure; time is observed seconds.

An episode begins when a rule is crossed and ends when it has stayed clear for the rule's `clear_s`. A rung that ends
something is taken only behind a dump of the same episode, `DUMP_HEAD_S` later, and once an attempt (a sharper one may
follow after `SHARP_GAP_S`). Where the episode that took it is over and the attempt goes on, nothing was ended, and the
next one may take it anew. Called by `monitor`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.health.facts import Act, Cleared, Finding
from orchestrator.health.limits import Setting
from workloads.contract.health import SHARP, Mode, Rule, Rung

DUMP_HEAD_S = 10.0
"""A dump has this long before what it was made for: 64 ranks are dumped in 5 s."""
SHARED_DUMP_S = 90.0
"""A dump is of all ranks: what was wrong already when one was made, this long ago at most, shares it."""
SHARP_GAP_S = 60.0
HOUR_S = 3600.0
NOTES_PER_HOUR = 20
"""Of one rule. One that comes and goes is told that often, and then not at all."""

Key = tuple[Rule, int | None, str | None, str]
_ORDER = {rung: i for i, rung in enumerate(Rung)}


@dataclass
class Episode:
    finding: Finding  # the newest
    opened: float
    told: bool = False
    taken: set[Rung] = field(default_factory=set)
    left: set[Rung] = field(default_factory=set)  # of those taken: to an episode that had ended the attempt already
    dumped: float | None = None
    clear_since: float | None = None


@dataclass
class Ladder:
    settings: Mapping[Rule, Setting]
    dumps_per_hour: int
    episodes: dict[Key, Episode] = field(default_factory=dict)
    _dumps: deque[float] = field(default_factory=deque)
    _notes: dict[Rule, deque[float]] = field(default_factory=dict)
    _ended: tuple[Rung, float, Key] | None = None  # the sharpest rung of this attempt, when, and whose

    def new_attempt(self) -> None:
        """Open episodes are forgotten, budgets are not."""
        self.episodes.clear()
        self._ended = None

    def step(self, t: float, findings: Sequence[Finding], held: Callable[[Key], bool]) -> list[Act | Cleared]:
        """`held`: an episode of which nothing could be seen at this look; it neither goes on nor ends."""
        acts: list[Act | Cleared] = []
        crossed = set()
        for finding in findings:
            episode = self.episodes.setdefault(finding.key, Episode(finding, t))
            episode.finding, episode.clear_since = finding, None
            crossed.add(finding.key)
            acts += self._climb(t, episode)
        for key in [k for k in self.episodes if k not in crossed and not held(k)]:
            episode = self.episodes[key]
            since = episode.clear_since if episode.clear_since is not None else t
            episode.clear_since = since
            if t - since >= self.settings[key[0]].clear_s:
                del self.episodes[key]
                self._forget_end(key)
                if episode.told:
                    acts.append(Cleared(episode.finding, t - episode.opened))
        return acts

    def _climb(self, t: float, episode: Episode) -> list[Act]:
        finding, setting = episode.finding, self.settings[episode.finding.rule]
        acts: list[Act] = []
        for rung in setting.ladder:
            if rung in episode.taken:
                continue
            if rung is Rung.NOTE:
                episode.taken.add(rung)
                if self._may_note(t, finding.rule):
                    episode.told = True
                    acts.append(Act(rung, finding))
            elif rung is Rung.DUMP and finding.level >= 0:
                episode.taken.add(rung)
                acts += self._dump(t, episode)
            elif rung in SHARP and finding.level >= 1:
                acts += self._sharp(t, rung, episode, setting)
                break  # one at a time, and none over one that still waits
        episode.told = episode.told or bool(acts)
        return acts

    def _dump(self, t: float, episode: Episode) -> list[Act]:
        if self._dumps and t - self._dumps[-1] <= min(SHARED_DUMP_S, _ill_for(episode.finding)):
            episode.dumped = self._dumps[-1]
            return []
        if self._ended is not None:
            return []  # the attempt is being ended: what is found on the way is noted
        _forget(self._dumps, t)
        if len(self._dumps) >= self.dumps_per_hour:
            return self._only_said(Rung.DUMP, episode)
        return [self._dump_now(t, episode)]

    def _dump_now(self, t: float, episode: Episode) -> Act:
        episode.dumped = t
        self._dumps.append(t)
        return Act(Rung.DUMP, episode.finding)

    def _sharp(self, t: float, rung: Rung, episode: Episode, setting: Setting) -> list[Act]:
        if setting.mode is not Mode.ACT:
            episode.taken.add(rung)
            return self._only_said(rung, episode)
        if episode.dumped is None:  # the budget was spent; what ends a run is dumped whatever the budget says
            return [self._dump_now(t, episode)]
        if t - episode.dumped < DUMP_HEAD_S:
            return []
        if self._ended is not None:
            last, at, _ = self._ended
            if _ORDER[rung] <= _ORDER[last]:
                episode.taken.add(rung)
                episode.left.add(rung)
                return []
            if t - at < SHARP_GAP_S:
                return []
        episode.taken.add(rung)
        self._ended = (rung, t, episode.finding.key)
        return [Act(rung, episode.finding)]

    def _forget_end(self, key: Key) -> None:
        """An episode is over in an attempt that it should have ended: what the others left to it is theirs again."""
        if self._ended is None or self._ended[2] != key:
            return
        self._ended = None
        for episode in self.episodes.values():
            episode.taken -= episode.left
            episode.left.clear()

    def _only_said(self, rung: Rung, episode: Episode) -> list[Act]:
        """What is not done is worth a word where the episode is told at all."""
        return [Act(rung, episode.finding, suppressed=True)] if episode.told else []

    def _may_note(self, t: float, rule: Rule) -> bool:
        notes = self._notes.setdefault(rule, deque())
        _forget(notes, t)
        if len(notes) >= NOTES_PER_HOUR:
            return False
        notes.append(t)
        return True


def _ill_for(finding: Finding) -> float:
    """Seconds it has been so, the time below its limit included."""
    return finding.value if finding.unit == "s" and finding.value is not None else finding.since_s


def _forget(times: deque[float], t: float) -> None:
    while times and t - times[0] >= HOUR_S:
        times.popleft()
