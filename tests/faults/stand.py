"""A run under test: its directory, its supervisor and keeper, and the moment of its life that a cell asks for.

Called by the cells. Every wait has a bound and looks at the same time for two attempts that live side by side.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from orchestrator.runs import index
from pods.keeper.runs import pending_requests
from tests.faults.orders import Desk
from tests.faults.staff import Forked, Ways, keep, supervise
from tests.faults.words import When
from tests.supervisor.runs import make_run, request
from workloads.contract.files import atomic_write_json, read_json, try_read_json
from workloads.contract.process import MARK, ProcId, all_pids, environ_of, marked
from workloads.contract.rundir import OrchHome, RunDir
from workloads.contract.states import ENDED, RESUMABLE

PATIENCE_S = 300.0
SAMPLE_S = 0.2
EVERY = 20
"""steps from checkpoint to checkpoint: what a fault may cost"""
GATE = EVERY + 5


class Failed(AssertionError):
    """What a cell expected did not happen."""


@dataclass
class Stand:
    home: OrchHome
    name: str
    steps: int = 120
    world: int = 2
    step_s: float = 0.01
    auto: bool = True
    """a supervisor that dies is started again, as Ray does"""
    ways: Ways = field(default_factory=Ways)
    health: dict[str, Any] = field(default_factory=dict)
    """of the job"""
    grace_s: float = 600.0
    env: dict[str, str] = field(default_factory=dict)
    """of the ranks"""
    damaged: set[str] = field(default_factory=set)
    """checkpoints that the cell itself has spoilt"""
    intervals: int = 1
    """checkpoint intervals that this fault may cost"""
    torn_events: int = 0
    """lines of events.jsonl that the cell itself has spoilt"""
    instead: Stand | None = None
    """the stand that the cell made of its own"""
    at_end: list[Callable[[], None]] = field(default_factory=list)
    side_by_side: list[str] = field(default_factory=list)
    sampled_at: float = 0.0

    def __post_init__(self) -> None:
        self.home.runs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.control = Desk(self.home.path.parent / f"control-{self.name}")
        self.run: RunDir

    def launch(self, *, keep_last: int = 3, **changes: Any) -> None:
        """Make the run; `changes` as in `tests.supervisor.runs.run_row`."""
        plan = {
            "steps": self.steps, "every": EVERY, "evaluate_every": EVERY // 2, "step_s": self.step_s, "keep": keep_last,
        }  # fmt: skip
        base = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        told = {"FAULTS_CONTROL": str(self.control.control), "FAULTS_PLAN": json.dumps(plan)}
        changes.setdefault("restart", {"max": 3, "backoff_s": [0.2]})
        changes.setdefault("grace_s", self.grace_s)
        argv = [sys.executable, "-m", "tests.faults.rank"]
        self.run = make_run(
            self.home, argv, self.name, world=self.world, kind="train", env=base | told | self.env, **changes
        )
        if self.health:
            row = read_json(self.run.run_json)
            row["job"]["health"] = self.health
            atomic_write_json(self.run.run_json, row)
        index.record(self.home, read_json(self.run.run_json))
        self.supervisor = Forked("supervisor", self._supervise, self.run.supervisor_log)
        self.keeper = Forked("keeper", lambda: keep(self.home), self.home.path / "keeper.log")
        self.keeper.start()
        self.supervisor.start()

    def _supervise(self) -> None:
        supervise(self.run, self.ways, self._die_at)

    _die_at: int | None = None

    # looking

    @property
    def status(self) -> dict[str, Any]:
        return try_read_json(self.run.status) or {}

    @property
    def state(self) -> str:
        return str(self.status.get("state"))

    @property
    def attempt(self) -> int:
        return int(self.status.get("attempt", 0))

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The whole lines of a JSON file that may be growing."""
        if not path.exists():
            return []
        rows = []
        for line in path.read_bytes().split(b"\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def events(self, *what: str) -> list[dict[str, Any]]:
        return [e for e in self.rows(self.run.events) if not what or e["what"] in what]

    def step(self, attempt: int | None = None) -> int:
        """The last step in the ledger, of this attempt or of any."""
        rows = self.rows(self.run.ledger)
        return max((r["step"] for r in rows if attempt in (None, r["attempt"])), default=0)

    def committed(self) -> int:
        return max((c["step"] for c in self.control.commits()), default=0)

    def rank(self, rank: int, attempt: int | None = None) -> ProcId:
        row = read_json(self.run.rank_record(attempt or self.attempt, rank))
        return ProcId(row["pid"], row["start_time"], row["boot_id"])

    def shim(self, rank: int, attempt: int | None = None) -> ProcId:
        row = read_json(self.run.rank_record(attempt or self.attempt, rank))
        return ProcId(row["shim_pid"], row["shim_start_time"], row["boot_id"])

    def log(self, rank: int) -> str:
        path = self.run.rank_log(rank)
        return path.read_text(errors="replace") if path.exists() else ""

    # waiting

    def until(self, condition: Callable[[], Any], words: str, timeout_s: float = PATIENCE_S) -> Any:
        """The first true value of `condition`. Failed with the run's story when there is none in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.upkeep()
            if value := condition():
                return value
            if time.monotonic() > deadline:
                raise Failed(f"not within {timeout_s:.0f} s: {words}\n{self.story()}")
            time.sleep(0.02)

    def upkeep(self) -> None:
        if time.monotonic() - self.sampled_at > SAMPLE_S:
            self.sample()
            self.sampled_at = time.monotonic()
        wanted = self.state not in ENDED or pending_requests(self.run, "resume")
        if self.auto and wanted and not self.supervisor.alive() and self.run.path.exists():
            self._die_at = next(self.ways.die_at, None) if self.ways.die_at else None
            self.supervisor.start()

    def sample(self) -> None:
        """Look for processes of two attempts that live at the same moment."""
        found: dict[int, list[ProcId]] = {}
        for ident in marked(self.run.run_id):
            mark = environ_of(ident.pid).get(MARK, "").split("/")
            if len(mark) == 3:
                found.setdefault(int(mark[1][1:]), []).append(ident)
        for attempt in sorted(found)[:-1]:  # read first, so a dead one may still be listed beside its successor
            for ident in found[attempt]:
                if ident.alive():
                    newest = max(found)
                    self.side_by_side.append(f"pid {ident.pid} of attempt {attempt} beside attempt {newest}")

    def until_state(self, *states: str, attempt: int | None = None, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        self.until(
            lambda: self.state in states and attempt in (None, self.attempt),
            f"state {' or '.join(states)}" + (f" of attempt {attempt}" if attempt else ""),
            timeout_s,
        )
        return self.status

    def until_steps(self, more: int = 1, attempt: int | None = None) -> None:
        """`more` steps beyond what the ledger has now; of that attempt alone when one is named."""
        goal = (self.step(attempt) if attempt is None else 0) + more
        self.until(lambda: self.step(attempt) >= goal, f"step {goal}" + (f" of attempt {attempt}" if attempt else ""))

    def until_at(self, phase: str, attempt: int | None = None) -> None:
        def there() -> bool:
            places = [self.control.where(r) for r in range(self.world)]
            return all(p == phase and attempt in (None, a) for a, p in places)

        self.until(there, f"every rank at {phase}")

    # moments

    def bring_to(self, when: When) -> int:
        """Bring the run to this moment; ranks that can wait there do. Returns the attempt that runs (or ran) then."""
        match when:
            case When.STARTING | When.LOADING | When.COMPILING:
                self.control.hold(when.value)
                self.launch()
                self.until_at(when.value, 1)
            case When.TRAINING:
                self.launch()
                self.after_commit()
            case When.CHECKPOINTING | When.EVALUATING:
                self.launch()
                self.after_commit()
                self.control.hold(when.value)
                self.control.gate(10**9)
                self.until_at(when.value)
            case When.HALTING:
                self.launch()
                self.after_commit()
                self.control.hold("halting")
                self.run.halt.write_text("enough")
                self.until_at("halting")
                self.until_state("halting")
            case When.RESUMING:
                self.launch()
                self.after_commit()
                self.control.hold("loading")
                self.rank(1).signal(signal.SIGKILL)
                self.until_at("loading", 2)
            case When.BETWEEN:
                self.launch(restart={"max": 3, "backoff_s": [3.0]})
                self.after_commit()
                self.rank(1).signal(signal.SIGKILL)
                self.until_state("resuming")
                self.until(lambda: not marked(self.run.run_id), "no rank left")
            case _:
                raise AssertionError(when)
        self.until(lambda: self.attempt, "an attempt in status.json")
        return self.attempt

    def after_commit(self, timeout_s: float = PATIENCE_S) -> None:
        """Until a checkpoint is committed and a few steps more are made; there the ranks wait."""
        self.control.gate(GATE)
        self.until(lambda: self.committed() >= EVERY and self.step() >= GATE, f"step {GATE}", timeout_s)

    # ends

    def halt(self, why: str = "enough") -> None:
        self.run.halt.write_text(why)

    def ask(self, verb: str, ident: str = "ask1", **fields: Any) -> Path:
        return request(self.run, verb, ident, **fields)

    def resume(self, ident: str = "back") -> Path:
        """What `orch resume` does: the request, and a supervisor."""
        self.until(lambda: not self.supervisor.alive(), "the supervisor left the ended run")
        return self.ask("resume", ident)  # and `upkeep` brings a supervisor, as the keeper does

    def bring_back(self) -> None:
        """Whatever was done: the run goes on to its last step, by a resume when it has ended."""
        self.control.release()
        for n in count(1):
            state = self.until_state("succeeded", *RESUMABLE)["state"]
            if state == "succeeded":
                break
            if n > 2:
                raise Failed(f"still {state} after {n - 1} resumes\n{self.story()}")
            attempt = self.attempt
            self.resume(f"back{n}")
            self.until(lambda a=attempt: self.attempt > a, "the attempt after a resume")
        self.until(lambda: not self.supervisor.alive(), "the supervisor left")

    def story(self) -> str:
        """What a failing cell needs to show."""
        parts = [f"status: {try_read_json(self.run.status)}", f"steps {self.step()}, committed {self.committed()}"]
        names = ("events.jsonl", "logs/supervisor.log", "logs/rank0.log", "logs/rank1.log", "logs/shim_rank0.log")
        for path in [*(self.run.path / n for n in names), self.home.path / "keeper.log"]:
            text = path.read_text(errors="replace")[-2500:] if path.exists() else "-"
            parts.append(f"--- {path.name}\n{text}")
        return "\n".join(parts)

    def close(self) -> None:
        """End everything this run started, by identity."""
        for child in (getattr(self, "supervisor", None), getattr(self, "keeper", None)):
            if child is not None:
                child.kill()
        if hasattr(self, "run"):
            for ident in marked(self.run.run_id):
                ident.signal(signal.SIGKILL)
            for pid in list(all_pids()):
                if is_shim_of(pid, self.run):
                    os.kill(pid, signal.SIGKILL)
        for step in self.at_end:
            step()


def is_shim_of(pid: int, run: RunDir) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"workloads.shim" in words and any(str(run.path).encode() in w for w in words)
