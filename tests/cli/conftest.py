"""Run directories made with the real writers, and the real command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from workloads.contract.files import LineWriter, append_line, atomic_write_json, dump_json
from workloads.contract.process import ProcId
from workloads.contract.records import Event, HaltAck, RankRecord, Status, as_wire
from workloads.contract.rundir import OrchHome, RunDir, make_run_id

ROOT = Path(__file__).resolve().parents[2]
T0 = 1_795_000_000.0


@dataclass
class Made:
    """A run directory and the hand that writes into it."""

    run: RunDir
    world: int

    def status(self, state: str, reason: str = "", *, attempt: int = 1, ts: float | None = None, **more: Any) -> None:
        now = time.time() if ts is None else ts
        status = Status(
            self.run.run_id, self.run.run_id.rsplit("-", 2)[0], state, reason, attempt, now, now, ["local"], **more
        )
        atomic_write_json(self.run.status, as_wire(status), durable=False)

    def supervised(self) -> dict[str, Any]:
        """This test process stands for the supervisor."""
        me = ProcId.me()
        return {"pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id}

    def record(self, rank: int, *, pid: int | None = None, attempt: int = 1, **more: Any) -> None:
        ident = ProcId.of(pid) if pid else ProcId.me()
        assert ident is not None
        record = RankRecord(
            self.run.run_id, attempt, rank, "local", ident.pid, ident.start_time, ident.boot_id, ["x"],
            more.pop("ts", time.time()), pid=ident.pid, start_time=ident.start_time, **more,
        )  # fmt: skip
        path = self.run.rank_record(attempt, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, as_wire(record), durable=False)

    def beat(self, rank: int, ts: float, msg: str = "progress", *, attempt: int = 1, **more: Any) -> None:
        row = {"v": 1, "seq": 0, "ts": ts, "msg": msg, "rank": rank, "world_size": self.world, "attempt": attempt}
        writer = LineWriter(self.run.heartbeat(rank))
        writer.write(json.dumps({**row, **more}).encode() + b"\n")
        writer.close()

    def event(self, seq: int, what: str, why: str = "", **more: Any) -> None:
        append_line(
            self.run.events, Event(seq, time.time(), more.pop("attempt", 1), "supervisor", what, why, **more).wire()
        )

    def log(self, rank: int, data: bytes) -> None:
        with self.run.rank_log(rank).open("ab") as f:
            f.write(data)

    def halt_ack(self, rank: int, step: int) -> None:
        ack = HaltAck(self.run.run_id, rank, 1, step, time.time(), f"step_{step:08d}", "ab" * 32)
        atomic_write_json(self.run.halt_ack(rank), as_wire(ack), durable=False)


def make_run(home: OrchHome, name: str = "tiny", *, world: int = 2, created: float = T0, kind: str = "train") -> Made:
    run = home.run(make_run_id(name, created))
    run.path.mkdir(parents=True, mode=0o700)
    for folder in run.skeleton():
        folder.mkdir(mode=0o700)
    pods = [{"name": "local", "address": "127.0.0.1", "ranks": list(range(world)), "gpus": 0}]
    doc = {
        "v": 1, "run": run.run_id, "name": name, "kind": kind, "created": created, "head": "local", "pods": pods,
        "world_size": world, "job": {"name": name, "halt": {"grace_s": 600.0}},
    }  # fmt: skip
    run.run_json.write_bytes(dump_json(doc))
    return Made(run, world)


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Orch:
    """The command as a person has it: a process of its own, its exit code and what it said."""

    def __init__(self, home: OrchHome, cwd: Path) -> None:
        self.home, self.cwd = home, cwd
        self._started: list[subprocess.Popen[str]] = []

    def env(self) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        return {**keep, "PYTHONPATH": str(ROOT), "ORCH_HOME": str(self.home.path), "COLUMNS": "120", "TZ": "UTC"}

    def start(self, *args: str, **more: Any) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "orchestrator.cli", *args]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(argv, cwd=self.cwd, **{"env": self.env(), "text": True, **pipes, **more})
        self._started.append(process)
        return process

    def __call__(self, *args: str, timeout_s: float = 30.0) -> Ran:
        process = self.start(*args)
        out, err = process.communicate(timeout=timeout_s)
        return Ran(process.returncode, out, err)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(timeout=120)
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    made = OrchHome(path)
    made.keeper.mkdir()
    me = ProcId.me()  # this process stands for the keeper, so that no command starts one
    atomic_write_json(made.keeper_record, {"v": 1, **asdict(me), "socket": str(made.keeper / "none")}, durable=False)
    return made


@pytest.fixture
def orch(home: OrchHome, tmp_path: Path) -> Iterator[Orch]:
    command = Orch(home, tmp_path)
    yield command
    command.close()


@pytest.fixture
def make(home: OrchHome) -> Callable[..., Made]:
    return lambda *args, **more: make_run(home, *args, **more)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that stands for a rank."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait(timeout=120)
