"""Guards a directory of heartbeats that orch did not start: the rules of `orchestrator.health` on facts of its files.

It observes. With `halt` it also does what watchdogs of such scripts do: `.anomaly_type`, then `.HALT`, once, and for
collapsed gates their figures beside them. It signals nobody and restarts nothing. A `.HALT` that lies there is left as
it is and ends the guard. Called by `orch watch --dir`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.health.facts import Act, Cleared, Finding, PodFacts, ProcessState, RankFacts
from orchestrator.health.monitor import Monitor
from orchestrator.runs.render import duration, one_line
from orchestrator.runs.watch import Change
from orchestrator.runs.watchforeign import ATTEMPT, CsvReader, ForeignReader
from workloads.contract.beats import Beat
from workloads.contract.config.health import HealthSpec
from workloads.contract.errors import LocalError, UsageError
from workloads.contract.files import atomic_write, atomic_write_json
from workloads.contract.haltfile import HaltProblem, read_halt
from workloads.contract.health import Mode, Rule, Rung, anomaly_of
from workloads.contract.process import ProcId
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase

EVERY_S = 2.0
OLD_S = 3600.0
MAX_RANKS = 4096
TAIL_BYTES = 64 << 10
GATE_FIGURES = ("step", "loss", "gate_entropy_mean", "gate_max_gate", "gate_collapse_frac", "gate_branch_shares")
HALTING = (
    Rule.NO_BEAT, Rule.NO_STEP, Rule.PHASE_OVER, Rule.NAN, Rule.ZERO_THROUGHPUT, Rule.GATE_COLLAPSE, Rule.GRAD_ZERO,
)  # fmt: skip
"""What watchdogs of existing scripts halt for."""
_RANK = re.compile(re.escape(RunDir(Path()).heartbeat(90210).name).replace("90210", r"(\d{1,6})"))
_STATES = {"T": ProcessState.STOPPED, "t": ProcessState.TRACED, "D": ProcessState.STUCK}


def spec_of(*, halt: bool) -> HealthSpec:
    """The table of the rules, with `.HALT` as the end of those for which such scripts expect it."""
    ladder = [Rung.NOTE, Rung.DUMP, Rung.HALT]
    rules = {rule.value: {"ladder": ladder} for rule in HALTING} | {Rule.GONE.value: {"mode": Mode.OFF}}
    return HealthSpec.model_validate({"mode": Mode.ACT if halt else Mode.OBSERVE, "rules": rules})


@dataclass
class Rank:
    """One rank's file, and its process where its beats name one that lives here."""

    rank: int
    reader: ForeignReader | CsvReader
    newest: Beat | None = None
    finished: bool = False
    process: ProcId | None = None

    def look(self) -> RankFacts:
        beats = tuple(self.reader.read())
        self.newest = beats[-1] if beats else self.newest
        state = self._state(beats)
        self.finished = state is ProcessState.DEAD or (self.newest is not None and self.newest.msg == Phase.DONE)
        return RankFacts(self.rank, "dir", state, beats, self.finished)

    def _state(self, beats: tuple[Beat, ...]) -> ProcessState:
        """A process that nobody names is taken for a running one: its files are read, so its silence is its own."""
        pid = next((b.get("pid") for b in reversed(beats) if b.get("pid")), None)
        if pid is not None and pid > 1 and (self.process is None or self.process.pid != pid):
            self.process = ProcId.of(pid)
        if self.process is None:
            return ProcessState.RUNNING
        state = self.process.state()
        return ProcessState.DEAD if state is None else _STATES.get(state, ProcessState.RUNNING)


@dataclass
class DirGuard:
    """LocalError E-WATCH-004 when `path` is no directory, or one that `halt` could not be written into."""

    path: Path
    say: Callable[[Change], None]
    halt: bool = False
    every_s: float = EVERY_S
    over: bool = False
    halted: bool = False
    ranks: dict[int, Rank] = field(default_factory=dict)
    _waits: bool = False  # every file is old: nothing is judged until a new beat comes
    _ended: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.path = self.path.expanduser().absolute()
        self.run = RunDir(self.path)
        if not self.path.is_dir():
            raise LocalError("E-WATCH-004", "--dir takes a directory", where=str(self.path), fix="ls -d PATH")
        if self.halt and not os.access(self.path, os.W_OK):
            raise LocalError(
                "E-WATCH-004", "no file can be written there: --halt 1 could halt nothing", where=str(self.path),
                fix=f"orch watch --dir {self.path}",
            )  # fmt: skip
        if (self.run.run_json.is_file() or self.run.status.is_file()) and self.halt:
            raise UsageError(
                "E-WATCH-005", "that is a run of orch: its own supervisor guards it", where=str(self.path),
                fix=f"orch watch {self.path.name}",
            )  # fmt: skip
        self.monitor = Monitor(spec_of(halt=self.halt), 1)

    def words(self) -> str:
        self._find()
        names = f"{len(self.ranks)} rank{'' if len(self.ranks) == 1 else 's'}"
        does = f"writes {self.run.halt.name} when a rule says so" if self.halt else "observes; --halt 1 would halt"
        return f"{self.path}: {names}; {does}; Ctrl-C ends it"

    def look(self, now: float, here: float) -> None:
        """One look. `now`: monotonic seconds, `here`: Unix seconds."""
        if self._halt_lies_there(here):
            return
        self._find()
        facts = [rank.look() for _, rank in sorted(self.ranks.items())]
        self._tell_ends(here)
        if self._is_old(facts, here):
            return
        for act in self.monitor.look(now, facts, [self._pod()], ATTEMPT):
            self._tell(act, here)
        self.over = self.over or (bool(facts) and all(f.finished for f in facts))

    def _find(self) -> None:
        """Ranks that have a file. training.csv speaks for rank 0 where there is none."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return  # it vanished: nothing is new, and nothing is known
        for rank in sorted(int(m[1]) for m in map(_RANK.fullmatch, names) if m)[:MAX_RANKS]:
            if rank not in self.ranks or isinstance(self.ranks[rank].reader, CsvReader):
                reader = ForeignReader(self.run.heartbeat(rank), rank)
                reader.skip_to_tail(TAIL_BYTES)
                self.ranks[rank] = Rank(rank, reader)
        if not self.ranks and self.run.training_csv.name in names:
            self.ranks[0] = Rank(0, CsvReader(self.run.training_csv))

    def _is_old(self, facts: list[RankFacts], here: float) -> bool:
        """Files of a training that ended long ago: what is in them is no news, until a new beat comes."""
        if self.monitor.attempt >= 0 or not facts:
            return False  # it has begun
        ages = [here - st for r in self.ranks.values() if (st := _mtime(r.reader.path)) is not None]
        if self._waits and any(f.beats for f in facts):
            return False
        if not ages or min(ages) <= OLD_S:
            return self._waits
        if not self._waits:
            self._say(
                here, "first", f"the newest line is {duration(min(ages))} old: it is guarded from the next one on"
            )
        self._waits = True
        return True

    def _pod(self) -> PodFacts:
        try:
            st = os.statvfs(self.path)
        except OSError:
            return PodFacts("dir", writable=False)
        free, total = st.f_bavail * st.f_frsize, st.f_blocks * st.f_frsize
        writable = os.access(self.path, os.R_OK) and free > 0 and not st.f_flag & os.ST_RDONLY  # for its owner
        return PodFacts("dir", disk_free_bytes=free, disk_total_bytes=total or None, writable=writable)

    def _tell_ends(self, here: float) -> None:
        for rank in self.ranks.values():
            if rank.finished and rank.rank not in self._ended:
                self._ended.add(rank.rank)
                done = rank.newest is not None and rank.newest.msg == Phase.DONE
                pid = rank.process.pid if rank.process else None
                self._say(
                    here, "state", f"rank {rank.rank} is done" if done else f"rank {rank.rank}: process {pid} is gone"
                )

    def _tell(self, act: Act | Cleared, here: float) -> None:
        finding = act.finding
        if isinstance(act, Cleared):
            self._say(here, "health-clear", f"{finding.rule} is over after {duration(act.after_s)}")
            return
        if act.rung is Rung.DUMP:
            return  # whose processes these are is not known: nobody is signalled
        done = act.rung is Rung.HALT and not act.suppressed and self._write_halt(finding, here)
        rest = "" if done or act.rung is not Rung.HALT else " not done"
        data = {"rule": finding.rule.value, "rung": act.rung.value, "rank": finding.rank, "value": finding.value,
                "limit": finding.limit, "unit": finding.unit, "suppressed": act.suppressed}  # fmt: skip
        self._say(here, "health", f"{finding.rule} [{act.rung}{rest}]: {finding.why}", data)

    def _say(self, here: float, kind: str, text: str, data: Mapping[str, object] | None = None) -> None:
        steps = [s for r in self.ranks.values() if r.newest is not None and (s := r.newest.get("step")) is not None]
        known = {k: v for k, v in (data or {}).items() if v is not None}
        self.say(Change(here, self.path.name, "dir", kind, one_line(text), "", max(steps, default=None), known))

    def _halt_lies_there(self, here: float) -> bool:
        found = read_halt(self.run)
        if found is None or isinstance(found, HaltProblem):
            return False
        if not self.halted:
            self._say(here, "halt", f"{self.run.halt.name} lies there, by {found.who}: {found.why or 'no reason'}")
        self.halted = self.over = True
        return True

    def _write_halt(self, finding: Finding, here: float) -> bool:
        """`.anomaly_type` first: who sees `.HALT` finds it. False when the disk refuses."""
        anomaly = anomaly_of(finding.rule)
        try:
            if finding.rule is Rule.GATE_COLLAPSE:
                self._write_gates(finding, here)
            atomic_write(self.run.anomaly_type, f"{anomaly}\n".encode(), mode=0o644)
            atomic_write(self.run.halt, f"{anomaly}: {one_line(finding.why)}\n".encode(), mode=0o644)
        except OSError as e:
            self._say(here, "note", f"{self.run.halt.name} could not be written: {e.strerror}")
            return False
        self.halted = self.over = True
        return True

    def _write_gates(self, finding: Finding, here: float) -> None:
        rank = self.ranks.get(finding.rank or 0)
        beat = rank.newest if rank is not None else None
        figures = {k: beat.get(k) for k in GATE_FIGURES if beat is not None and _plain(beat.get(k))}
        row = {"ts": here, "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(here)), "rank": finding.rank}
        atomic_write_json(self.run.gate_details, {**row, **figures, "why": finding.why}, mode=0o644)


def _plain(value: object) -> bool:
    """What JSON can say."""
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(x, int | float) and abs(x) < 1e300 for x in numbers)


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
