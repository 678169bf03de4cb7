"""A gang without Ray for tests: real shims, double-forked, on this machine. Placement is what the test says it is."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.health.facts import PodFacts, RankFacts
from orchestrator.supervisor.engine import Engine
from orchestrator.supervisor.hands import free_port
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.observe import Figures, PodEye
from orchestrator.supervisor.seen import GangSeen, GangState, RankSeen
from orchestrator.supervisor.spec import RunSpec, parse_spec
from pods.keeper.dumping import carry_out_dump
from pods.keeper.runs import pending_requests
from pods.keeper.spawn import clean_env, spawn_detached
from pods.remote.left import left_of
from pods.remote.reap import reap_lost
from tests.supervisor.runs import ROOT
from workloads.contract.files import atomic_write_json, read_json, try_read_json
from workloads.contract.process import ProcId, marked, sweep
from workloads.contract.records import as_wire
from workloads.contract.rundir import RunDir


@dataclass
class DirectGang:
    spec: RunSpec
    run: RunDir
    seen: GangSeen = field(default_factory=lambda: GangSeen(GangState.READY))
    held: Mapping[str, str] | None = field(default_factory=dict)
    gpu_before: Mapping[str, float] = field(default_factory=dict)
    gpu_stays: Sequence[str] = ()
    released: bool = False
    spawned: int = 0
    keeper: bool = True  # False: nobody answers dumps
    dumps: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._eye = PodEye(self.run, self.spec.pods[0].name, self.spec.pods[0].ranks)

    def look(self, now: float) -> GangSeen:
        return self.seen

    def ranks(self, attempt: int) -> tuple[tuple[RankSeen, ...], Figures, int]:
        reap_lost(self.run, attempt)  # the keeper's work
        for path in pending_requests(self.run, "dump") if self.keeper else ():
            if path.name not in self.dumps:
                self.dumps.add(path.name)
                threading.Thread(target=self._dump, args=(path,), daemon=True).start()
        return tuple(self._eye.look(attempt)), self._eye.figures(), self._eye.best_step()

    def _dump(self, path: Path) -> None:
        ack = carry_out_dump(self.run, try_read_json(path) or {})
        atomic_write_json(RunDir.ack_of(path), as_wire(ack))

    def health(self, now: float) -> tuple[Sequence[RankFacts], Sequence[PodFacts]]:
        ranks, pod = self._eye.facts(now)
        return ranks, [pod]

    def strays(self) -> tuple[int, ...] | None:
        return self._eye.strays()

    def busy(self) -> Mapping[str, str] | None:
        return self.held

    def place(self) -> None:
        self.seen = GangSeen(GangState.PLACED)

    def prepare(self) -> None:
        self.seen = GangSeen(GangState.READY)

    def devices(self) -> Mapping[str, Sequence[str]]:
        return {}

    def gpu_used(self) -> Mapping[str, float]:
        return self.gpu_before

    def gpu_left(self, before: Mapping[str, float]) -> Sequence[str]:
        assert before == self.gpu_before
        return self.gpu_stays

    def free_port(self) -> int:
        return free_port()

    def spawn(self, orders: Mapping[str, Sequence[str]]) -> None:
        for path in (Path(p) for paths in orders.values() for p in paths):
            self.spawned += 1
            env = clean_env(os.environ, PYTHONPATH=str(ROOT))
            argv = [sys.executable, "-s", "-m", "workloads.shim", str(path)]
            spawn_detached(sys.executable, argv, env=env, log=self.run.logs / "spawn.log")

    def sweep(self, mark: str) -> None:
        sweep(lambda: left_of(self.run), 1.0)

    def release(self) -> None:
        self.released = True

    def recode(self, spec: RunSpec) -> None:
        self.spec = spec


@dataclass
class Desk:
    """A run and the supervisor's engine over it; `again()` is a supervisor that was killed and came back."""

    run: RunDir
    speed: float = 1.0
    """seconds of the engine's clock in a real one: limits of health pass sooner, processes do not"""
    gang: DirectGang = field(init=False)
    engine: Engine = field(init=False)
    _now: float = field(default_factory=time.monotonic)
    _real: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.again()

    def tick(self) -> bool:
        real = time.monotonic()
        self._now, self._real = self._now + (real - self._real) * self.speed, real
        return self.engine.tick(self._now)

    def again(self) -> None:
        spec = parse_spec(read_json(self.run.run_json))
        journal = Journal(self.run)
        journal.load()
        self.gang = DirectGang(spec, self.run)
        self.engine = Engine(spec, self.run, self.gang, journal)

    @property
    def status(self) -> dict[str, object]:
        return try_read_json(self.run.status) or {}

    def rank(self, attempt: int, rank: int) -> dict[str, object]:
        return try_read_json(self.run.rank_record(attempt, rank)) or {}

    def pid(self, attempt: int, rank: int) -> ProcId:
        row = read_json(self.run.rank_record(attempt, rank))
        return ProcId(row["pid"], row["start_time"], row["boot_id"])

    def turn(self, until: Callable[[], bool], timeout_s: float = 180.0, every_s: float = 0.05) -> None:
        """Look and act until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"{self.status}\n{self.run.events.read_text()}"
            self.tick()
            time.sleep(every_s)

    def until(self, state: str, attempt: int | None = None, timeout_s: float = 180.0) -> dict[str, object]:
        self.turn(
            lambda: self.status.get("state") == state and attempt in (None, self.status.get("attempt")), timeout_s
        )
        return self.status

    def leave(self) -> None:
        """Go on until the engine says that the run is left."""
        deadline = time.monotonic() + 60
        while not self.tick():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def events(self, what: str) -> list[dict[str, object]]:
        rows = [json.loads(line) for line in self.run.events.read_text().splitlines()]
        return [r for r in rows if r["what"] == what]

    def close(self) -> None:
        """End what the test started, by identity."""
        for ident in marked(self.run.run_id):
            ident.signal(9)
