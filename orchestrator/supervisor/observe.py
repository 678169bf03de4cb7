"""What can be seen of the ranks on this machine: records, shim locks, processes, heartbeats. Reads only.

Used by the supervisor for the pod it runs on and by the PodAgent of every other pod. A run directory that is not there
makes every rank unknown: nothing in it can be missed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.health.facts import PodFacts, ProcessState, RankFacts
from orchestrator.supervisor.illness import Mark
from orchestrator.supervisor.lastwords import last_error, size_of
from orchestrator.supervisor.podwatch import PodWatch
from orchestrator.supervisor.seen import RankPhase, RankSeen
from pods.keeper.runs import lock_is_held
from pods.remote.left import left_of
from workloads.contract.aside import aside_of, is_ours
from workloads.contract.beats import Beat, BeatReader
from workloads.contract.exitcodes import RankExit
from workloads.contract.files import read_json
from workloads.contract.process import ProcId
from workloads.contract.records import RankRecord, from_wire
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase

MAX_FRESH = 2000
"""Beats of a rank handed on at one look: a flood, or the whole past at the first look, keeps its newest ones."""
LOOK_BYTES = 16 << 20
"""Of a heartbeat file at one look."""
MAX_FROM_ASIDE = 1 << 14
"""Beats that are remembered as read beside the run directory: more than the file there takes."""
QUIET = frozenset({None, RankExit.DONE, RankExit.CHECKPOINTED, RankExit.STALE_EPOCH, RankExit.NO_GO})
"""exits whose reason is known"""
_STATES = {"T": ProcessState.STOPPED, "t": ProcessState.TRACED, "D": ProcessState.STUCK}


@dataclass(frozen=True)
class Figures:
    """The newest of what a rank told in any attempt."""

    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    toks_per_s: float | None = None


@dataclass
class RankEye:
    """One rank's files, looked at again and again."""

    run: RunDir
    rank: int
    pod: str
    figures: Figures = field(default_factory=Figures)
    best_step: int = -1
    _reader: BeatReader = field(init=False)
    _aside: BeatReader = field(init=False)
    _from_aside: OrderedDict[tuple[int, int, float], None] = field(default_factory=OrderedDict)
    """(attempt, seq, ts) of those that were read there: each comes again when it is moved. Every program of a rank
    counts seq from 0."""
    _attempt: int = 0
    _beat_ts: float | None = None
    _step: int | None = None
    _mark: Mark = field(default_factory=Mark)
    _fresh: deque[Beat] = field(default_factory=lambda: deque(maxlen=MAX_FRESH))
    _process: ProcessState = ProcessState.UNKNOWN
    _finished: bool = False
    _log_from: int = 0  # bytes of the log that older attempts wrote
    _said: str | None = None

    def __post_init__(self) -> None:
        self._reader = BeatReader(self.run.heartbeat(self.rank), self.rank)
        self._aside = BeatReader(aside_of(self.run, self.rank), self.rank)

    def look(self, attempt: int) -> RankSeen:
        if attempt != self._attempt:
            self._attempt, self._beat_ts, self._step, self._mark = attempt, None, None, Mark()
            self._fresh.clear()
            self._log_from, self._said = size_of(self.run.rank_log(self.rank)), None
        try:
            for beat in self._new_beats():
                self._take(beat)
        except OSError:
            pass  # it says nothing today: that is not news of the rank
        # the lock before the record: a shim that ends between the two is then seen as closing, never as absent
        held = lock_is_held(self.run.rank_lock(attempt, self.rank))
        phase, record = self._phase(attempt, held)
        if self._said is None and record is not None and record.cause == "exited" and record.exit_code not in QUIET:
            self._said = last_error(self.run.rank_log(self.rank), self._log_from)
        said = self._said or ""
        seen = RankSeen(self.rank, self.pod, phase, record, self._beat_ts, self._step, self._mark, said)
        self._finished = seen.finished is not None
        return seen

    def facts(self) -> RankFacts:
        """The last look, for the rules of health, with the beats that came since this was asked for last."""
        beats = tuple(self._fresh)
        self._fresh.clear()
        return RankFacts(self.rank, self.pod, self._process, beats, self._finished)

    def _new_beats(self) -> Iterator[Beat]:
        """Those in the run directory, then those that wait beside it (`contract.aside`); none twice."""
        for beat in self._reader.stream(LOOK_BYTES):
            if (beat.attempt, beat.seq, beat.ts) not in self._from_aside:
                yield beat
        for beat in self._aside.stream(LOOK_BYTES) if is_ours(self._aside.path) else ():
            key = (beat.attempt, beat.seq, beat.ts)
            if key not in self._from_aside:
                self._from_aside[key] = None
                if len(self._from_aside) > MAX_FROM_ASIDE:
                    self._from_aside.popitem(last=False)
                yield beat

    def _take(self, beat: Beat) -> None:
        step = beat.get("step")
        if step is not None:
            self.best_step = max(self.best_step, step)
        if beat.msg == Phase.PROGRESS and step is not None:
            self.figures = Figures(step, beat.get("steps"), beat.get("loss"), beat.get("toks_per_s"))
        if beat.attempt != self._attempt:
            return
        self._beat_ts = beat.ts
        self._step = step if step is not None else self._step
        self._mark = Mark(beat.msg.value, self._step, beat.seq)
        self._fresh.append(beat)

    def _phase(self, attempt: int, held: bool) -> tuple[RankPhase, RankRecord | None]:
        self._process = ProcessState.UNKNOWN
        try:
            record = from_wire(RankRecord, read_json(self.run.rank_record(attempt, self.rank)))
        except FileNotFoundError:
            if not self.run.run_json.is_file():
                return RankPhase.UNKNOWN, None  # it is not the record that is missing
            self._process = ProcessState.ABSENT
            return (RankPhase.SPAWNED if held else RankPhase.ABSENT), None
        except (OSError, ValueError, TypeError):
            return RankPhase.UNKNOWN, None
        if record.ended is not None or (record.pid is None and record.error is not None):
            self._process = ProcessState.DEAD
            return (RankPhase.CLOSING if held else RankPhase.ENDED), record
        if record.pid is None or record.start_time is None:
            self._process = ProcessState.ABSENT
            return RankPhase.SPAWNED, record
        self._process = process_state(ProcId(record.pid, record.start_time, record.boot_id))
        if self._process == ProcessState.UNKNOWN:
            return RankPhase.UNKNOWN, record
        return (RankPhase.CLOSING if self._process == ProcessState.DEAD else RankPhase.ALIVE), record


def process_state(ident: ProcId) -> ProcessState:
    """By pid, start time and boot: a pid that was given to somebody else is a dead rank, not a living one."""
    try:
        state = ident.state()
    except (OSError, ValueError, IndexError):
        return ProcessState.UNKNOWN
    return ProcessState.DEAD if state is None else _STATES.get(state, ProcessState.RUNNING)


@dataclass
class PodEye:
    """The ranks of one pod."""

    run: RunDir
    pod: str
    ranks: Sequence[int]
    eyes: dict[int, RankEye] = field(init=False)
    watch: PodWatch = field(init=False)
    _attempt: int = 0

    def __post_init__(self) -> None:
        self.eyes = {rank: RankEye(self.run, rank, self.pod) for rank in self.ranks}
        self.watch = PodWatch(self.run, self.pod, self.ranks)

    def look(self, attempt: int) -> list[RankSeen]:
        self._attempt = attempt
        return [eye.look(attempt) for eye in self.eyes.values()]

    def facts(self, now: float) -> tuple[list[RankFacts], PodFacts]:
        """The last look, for the rules of health. `now`: monotonic seconds."""
        return [eye.facts() for eye in self.eyes.values()], self.watch.look(self._attempt, now)

    def figures(self) -> Figures:
        """Of the lowest rank that has told any."""
        return next((e.figures for _, e in sorted(self.eyes.items()) if e.figures.step is not None), Figures())

    def best_step(self) -> int:
        return max((e.best_step for e in self.eyes.values()), default=-1)

    def strays(self) -> tuple[int, ...]:
        """Living processes of this run, also those that no longer carry its mark."""
        return tuple(p.pid for p in left_of(self.run))
