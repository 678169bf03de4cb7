"""Random lives of a gang in which nothing is wrong, on simulated time, and the eyes that see them badly.

A life is a script of phases and steps, made from a seed: slow checkpoints, compiles, evaluations, step times that
change, single slow steps, programs that hold the interpreter so that no keepalive comes. Seen through: looks at uneven
times, an observer that sleeps or is started again, a machine that sleeps, lost and late beats, a wall clock that
jumps, a pod that cannot be asked, a full disk that takes no beat. What is healthy is written where it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any

from orchestrator.health.facts import UNWRITABLE, Act, Cleared, GpuFacts, PodFacts, ProcessState, RankFacts
from orchestrator.health.monitor import Monitor
from workloads.contract.beats import Beat
from workloads.contract.config.health import HealthSpec
from workloads.contract.states import Phase

KEEPALIVE_S = 30.0
PHASES = {
    Phase.STARTING: 550.0, Phase.LOADING: 1100.0, Phase.COMPILING: 2300.0, Phase.EVALUATING: 2300.0,
    Phase.CHECKPOINTING: 1100.0,
}  # fmt: skip
"""Seconds a healthy phase may take: nearly twice its limit, where it has been dumped and is not ended."""


@dataclass(frozen=True)
class Line:
    """A heartbeat line of one rank and when it is written."""

    at: float
    phase: Phase
    fields: dict[str, Any]
    last: bool = False  # no keepalive follows: were it torn, nobody could know of the phase


@dataclass(frozen=True)
class Part:
    """A phase of `seconds`, or `steps` steps. `alone`: rank 0 says it and the others wait, saying `progress`."""

    phase: Phase
    seconds: float = 0.0
    steps: int = 0
    step_s: float = 0.0
    alone: bool = False
    deaf: bool = False  # the interpreter is held: no keepalive
    late: float = 0.0  # one step takes this long


@dataclass(frozen=True)
class Window:
    """Something about the view or the pod, from `at` to `until`."""

    kind: str
    at: float
    until: float
    rank: int = 0

    def __contains__(self, t: float) -> bool:
        return self.at <= t < self.until


def script(rng: Random) -> list[Part]:
    """A life. Steps up to 150 s; a late one up to 160 s, or 14 times the shortest usual time so far."""
    parts = [Part(p, _seconds(rng, p), deaf=rng.random() < 0.3) for p in (Phase.STARTING, Phase.LOADING)]
    step_s = shortest = math.exp(rng.uniform(math.log(0.01), math.log(150.0)))
    if rng.random() < 0.5:
        parts.append(Part(Phase.COMPILING, _seconds(rng, Phase.COMPILING), deaf=rng.random() < 0.5))
    for _ in range(rng.randint(1, 4)):
        deaf = rng.random() < 0.2
        shortest = min(shortest, step_s)
        late = rng.uniform(1, max(160.0, 14 * shortest)) if rng.random() < 0.4 else 0.0
        parts.append(Part(Phase.PROGRESS, steps=rng.randint(6, 40), step_s=step_s, deaf=deaf, late=late))
        step_s = min(150.0, max(0.01, step_s * rng.choice((1.0, 1.0, 0.5, 2.0))))
        phase = rng.choice((Phase.CHECKPOINTING, Phase.CHECKPOINTING, Phase.EVALUATING, Phase.COMPILING))
        parts.append(Part(phase, _seconds(rng, phase), alone=rng.random() < 0.4, deaf=rng.random() < 0.3))
    parts.append(Part(Phase.PROGRESS, steps=rng.randint(3, 30), step_s=step_s))
    return parts


def _seconds(rng: Random, phase: Phase) -> float:
    """Mostly short; one in eight goes up to what is still healthy."""
    longest = PHASES[phase]
    return rng.uniform(0.0, longest if rng.random() < 0.125 else min(40.0, longest))


@dataclass
class Voice:
    """The lines of one rank, as the runtime would write them."""

    rank: int
    parts: list[Part]
    rng: Random
    t: float
    wrote: float = -1e9
    phase: Phase = Phase.STARTING
    step: int = 0

    def lines(self) -> Iterator[Line]:
        for part in self.parts:
            if part.phase is Phase.PROGRESS:
                yield from self._train(part)
            else:
                yield from self._do(part)

    def _do(self, part: Part) -> Iterator[Line]:
        end = self.t + part.seconds
        if not part.alone or self.rank == 0:
            yield replace(self._write(part.phase, {"step": self.step} if self.step else {}), last=part.deaf)
        yield from self._wait(end, part.deaf)

    def _train(self, part: Part) -> Iterator[Line]:
        # the script's own seed: the gang is synchronous, so that a step takes all of them as long
        pace = Random(f"{part}")
        late_at = pace.randrange(part.steps) if part.late else -1
        for i in range(part.steps):
            took = part.late if i == late_at else part.step_s * pace.uniform(0.8, 1.3)
            steps = 1
            if part.step_s < 0.5 and i != late_at:  # many small steps at once: the beats come each second anyway
                steps, took = max(1, int(1.0 / part.step_s)), max(1.0, took)
            yield from self._wait(self.t + took, part.deaf)
            self.step += steps
            if self.phase is not Phase.PROGRESS or self.t - self.wrote >= 1.0:
                yield self._write(Phase.PROGRESS, self._figures(took / steps))

    def _figures(self, step_s: float) -> dict[str, Any]:
        rng = self.rng
        fields = {
            "step": self.step, "loss": rng.gauss(2.0, 0.1), "grad_norm": rng.uniform(0.1, 2.0), "step_time_s": step_s,
            "toks_per_s": 1e4 / step_s, "dt_fetch_s": rng.choice((0.01, 0.01, 0.9)) * step_s,
        }  # fmt: skip
        odd = rng.random()
        if odd < 0.01:
            fields["loss"] = 40.0
        elif odd < 0.02:
            fields["grad_norm"] = rng.choice((0.0, math.inf))
        elif odd < 0.025:
            fields["toks_per_s"] = 0.0
        elif odd < 0.03:
            fields.pop("step_time_s")
        return fields

    def _wait(self, until: float, deaf: bool) -> Iterator[Line]:
        while not deaf and until - self.wrote >= KEEPALIVE_S and self.wrote > -1e8:
            at = self.wrote + self.rng.uniform(KEEPALIVE_S, KEEPALIVE_S + 5)
            if at >= until:
                break
            self.t = max(self.t, at)
            yield self._write(self.phase, {"step": self.step} if self.step else {})
        self.t = max(self.t, until)

    def _write(self, phase: Phase, fields: dict[str, Any]) -> Line:
        self.phase, self.wrote = phase, self.t
        return Line(self.t, phase, fields)


def windows(rng: Random, length: float, ranks: int) -> list[Window]:
    """What goes wrong with the view, and what a healthy pod does beside training."""
    kinds = {
        "unseen": 900.0, "full": 1500.0, "stale": 900.0, "asleep": 3 * 3600.0, "reading": 600.0, "stopped": 100.0,
        "worn": 300.0,
    }  # fmt: skip
    found = []
    for kind, longest in kinds.items():
        if rng.random() < 0.25:
            at = rng.uniform(0, length)
            found.append(Window(kind, at, at + rng.uniform(1, longest), rng.randrange(ranks)))
    return found


class Fault(StrEnum):
    """What is put into a life; from then on nothing in it is healthy any more."""

    HANG = "hang"  # the step never ends; a thread keeps the rank alive
    MUTE = "mute"  # so does the thread
    SAVE = "save"  # a checkpoint that never ends
    GONE = "gone"  # the process is gone, its record never comes
    NAN = "nan"


@dataclass
class History:
    """One life and how it is seen. `run` yields what the monitor says, with the simulated second."""

    seed: int
    spec: HealthSpec = field(default_factory=HealthSpec)
    fault: Fault | None = None
    clear: bool = False  # seen without windows and gaps
    looks: int = 0
    sick_at: float = math.inf  # seconds from the beginning
    longest_s: float = 0.0  # step that was told before

    def run(self, most_s: float = 3600.0) -> Iterator[tuple[float, Act | Cleared]]:
        rng = Random(self.seed)
        ranks, t = rng.randint(1, 3), 1e5 * rng.random()
        monitor = Monitor(self.spec, ranks, beats_expected=rng.random() < 0.7)
        told_deaf = 0
        for attempt in range(1, 2 + (rng.random() < 0.3 and self.fault is None)):
            parts = script(rng)
            voices = [list(Voice(r, parts, Random(f"{self.seed}/{r}"), t).lines()) for r in range(ranks)]
            end = min(t + most_s, max(v[-1].at for v in voices))
            blinds = [] if self.clear else windows(rng, end - t, ranks)
            if self.fault is not None:
                voices, end = self._fall_ill(rng, voices, t, end), end + 9000
            view = View(rng, blinds, t, voices, self)
            while t < end:
                gone = view.gap(t)
                t += gone
                if gone > 60 and rng.random() < 0.5:  # the observer was started again, or only forgets
                    expected = monitor.beats_expected
                    monitor = Monitor(self.spec, ranks, beats_expected=expected, lines_lost=told_deaf == attempt)
                    view.read = view.read if self.fault is None and rng.random() < 0.5 else [0] * ranks
                facts, pod = view.look(t, attempt)
                self.looks += 1
                for item in monitor.look(t, facts, [pod], attempt):
                    if isinstance(item, Act) and item.finding.tag == UNWRITABLE:
                        told_deaf = attempt  # it is in the journal
                    yield t - view.start, item

    def _fall_ill(self, rng: Random, voices: list[list[Line]], start: float, end: float) -> list[list[Line]]:
        """From a step of rank 0 on, after the fifth."""
        steps = [x for x in voices[0] if _trains(voices, x.at) and x.at < end]
        at = rng.choice(steps[5:] or steps[-1:]).at
        self.sick_at = at - start
        self.longest_s = max(x.fields.get("step_time_s", 0.0) for x in steps if x.at <= at)
        return [[x for x in lines if x.at <= at] + self._last_lines(lines, at) for lines in voices]

    def _last_lines(self, lines: list[Line], at: float) -> list[Line]:
        if self.fault is Fault.NAN:
            return [Line(x.at, x.phase, {**x.fields, "loss": math.nan}) for x in _steps(lines, at)]
        if self.fault in (Fault.MUTE, Fault.GONE):
            return []
        phase = Phase.CHECKPOINTING if self.fault is Fault.SAVE else Phase.PROGRESS
        step = max((x.fields.get("step", 0) for x in lines if x.at <= at), default=0)
        first = [Line(at + 1.0, phase, {"step": step})] if phase is not Phase.PROGRESS else []
        return first + [Line(at + 31.0 * i, phase, {"step": step}) for i in range(1, 290)]


def _trains(voices: list[list[Line]], at: float) -> bool:
    """The newest line of every rank is a step, and rank 0 tells one now."""
    newest = [next((x for x in reversed(lines) if x.at <= at), None) for lines in voices]
    return all(x is not None and "loss" in x.fields for x in newest) and newest[0] is not None and newest[0].at == at


def _steps(lines: list[Line], at: float) -> list[Line]:
    """Steps from `at` on, for ever: the newest is made again and again."""
    newest = [x for x in lines if x.at <= at and "loss" in x.fields][-1]
    every = max(1.0, newest.fields.get("step_time_s", 1.0))
    step = newest.fields["step"]
    return [Line(at + every * i, Phase.PROGRESS, {**newest.fields, "step": step + i}) for i in range(1, 60)]


@dataclass
class View:
    """How an observer sees the lives of a gang."""

    rng: Random
    windows: list[Window]
    start: float
    voices: list[list[Line]]
    history: History
    wall: float = 1.8e9
    read: list[int] = field(default_factory=list)
    seq: int = 0
    pod_at: float = -1e9
    pod: PodFacts = field(default_factory=lambda: PodFacts("p"))

    def __post_init__(self) -> None:
        self.read = [0] * len(self.voices)

    def gap(self, t: float) -> float:
        """Seconds to the next look: 0.5 to 3, now and then minutes, through `asleep` at once."""
        for window in self.windows:
            if window.kind == "asleep" and t - self.start in window:
                return max(0.5, window.until - (t - self.start))
        if self.rng.random() < 0.003 and not self.history.clear:
            return self.rng.uniform(3, 600)
        return self.rng.uniform(0.5, 3.0)

    def look(self, t: float, attempt: int) -> tuple[list[RankFacts], PodFacts]:
        if self.rng.random() < 0.002:
            self.wall += self.rng.choice((-600.0, -3.0, 3.0, 86400.0))
        return [self._rank(r, t, attempt) for r in range(len(self.voices))], self._pod(t)

    def _in(self, kind: str, t: float, rank: int | None = None) -> bool:
        since = t - self.start
        return any(w.kind == kind and since in w and (rank is None or w.rank == rank) for w in self.windows)

    def _rank(self, rank: int, t: float, attempt: int) -> RankFacts:
        if self._in("unseen", t):
            return RankFacts(rank, "p", ProcessState.UNKNOWN)  # its beats come later, all at once
        lines, beats = self.voices[rank], []
        while self.read[rank] < len(lines) and lines[self.read[rank]].at <= t:
            line = lines[self.read[rank]]
            self.read[rank] += 1
            if self._in("full", line.at) or (self.rng.random() < 0.02 and not line.last):
                continue  # no room for it, or torn
            self.seq += 1
            ts = self.wall + line.at
            beats.append(Beat(self.seq, ts, line.phase, rank, len(self.voices), attempt, line.fields))
        process = ProcessState.RUNNING
        if self.history.fault is Fault.GONE and t - self.start > self.history.sick_at:
            process = ProcessState.DEAD
        elif t - self.start < 3.0 and self.rng.random() < 0.7:
            process = ProcessState.ABSENT
        elif self._in("reading", t, rank):
            process = ProcessState.STUCK
        elif self._in("stopped", t, rank):
            process = ProcessState.STOPPED
        return RankFacts(rank, "p", process, tuple(beats))

    def _pod(self, t: float) -> PodFacts:
        """Looked at every four seconds, so that a full disk is known late and forgotten late."""
        if t - self.pod_at >= 4.0 and not self._in("stale", t):
            worn, self.pod_at = self._in("worn", t), t
            gpu = GpuFacts(
                "GPU-1", None if worn else True, 7.9e4 if worn else 4e4, 8e4, 3 + worn, (13, 43) if worn else ()
            )
            full = self._in("full", t)
            self.pod = PodFacts(
                "p", 0.0, 0 if full else 10**12, 2 * 10**12, not full, 1000 if worn else 10**9, 10**9,
                97 if worn else 50, 100, (gpu,), self.wall,
            )  # fmt: skip
        return PodFacts(**{**vars(self.pod), "age_s": t - self.pod_at})
