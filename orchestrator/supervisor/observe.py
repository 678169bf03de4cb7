"""What can be seen of the ranks on this machine: records, shim locks, processes, heartbeats. Reads only.

Used by the supervisor for the pod it runs on and by the PodAgent of every other pod.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.supervisor.seen import RankPhase, RankSeen
from pods.keeper.runs import lock_is_held
from workloads.contract.beats import Beat, BeatReader
from workloads.contract.files import read_json
from workloads.contract.process import ProcId, marked
from workloads.contract.records import RankRecord, from_wire
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase


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
    _attempt: int = 0
    _beat_ts: float | None = None
    _step: int | None = None

    def __post_init__(self) -> None:
        self._reader = BeatReader(self.run.heartbeat(self.rank), self.rank)

    def look(self, attempt: int) -> RankSeen:
        if attempt != self._attempt:
            self._attempt, self._beat_ts, self._step = attempt, None, None
        for beat in self._reader.read():
            self._take(beat)
        # the lock before the record: a shim that ends between the two is then seen as closing, never as absent
        held = lock_is_held(self.run.rank_lock(attempt, self.rank))
        phase, record = self._phase(attempt, held)
        return RankSeen(self.rank, self.pod, phase, record, self._beat_ts, self._step)

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

    def _phase(self, attempt: int, held: bool) -> tuple[RankPhase, RankRecord | None]:
        try:
            record = from_wire(RankRecord, read_json(self.run.rank_record(attempt, self.rank)))
        except FileNotFoundError:
            return (RankPhase.SPAWNED if held else RankPhase.ABSENT), None
        except (OSError, ValueError, TypeError):
            return RankPhase.UNKNOWN, None
        if record.ended is not None or (record.pid is None and record.error is not None):
            return (RankPhase.CLOSING if held else RankPhase.ENDED), record
        if record.pid is None or record.start_time is None:
            return RankPhase.SPAWNED, record
        alive = ProcId(record.pid, record.start_time, record.boot_id).alive()
        return (RankPhase.ALIVE if alive else RankPhase.CLOSING), record


@dataclass
class PodEye:
    """The ranks of one pod."""

    run: RunDir
    pod: str
    ranks: Sequence[int]
    eyes: dict[int, RankEye] = field(init=False)

    def __post_init__(self) -> None:
        self.eyes = {rank: RankEye(self.run, rank, self.pod) for rank in self.ranks}

    def look(self, attempt: int) -> list[RankSeen]:
        return [eye.look(attempt) for eye in self.eyes.values()]

    def figures(self) -> Figures:
        """Of the lowest rank that has told any."""
        return next((e.figures for _, e in sorted(self.eyes.items()) if e.figures.step is not None), Figures())

    def best_step(self) -> int:
        return max((e.best_step for e in self.eyes.values()), default=-1)

    def strays(self) -> tuple[int, ...]:
        """Living processes that carry this run's mark."""
        return tuple(sorted(p.pid for p in marked(self.run.run_id)))
