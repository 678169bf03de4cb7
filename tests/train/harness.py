"""Start real ranks as the supervisor would: a run directory with run.json, an environment a rank, one process each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.contract.config.job import JobSpec
from workloads.contract.process import catches
from workloads.contract.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
RUN_ID = "test-20260101T000000Z-abcd"
PATIENCE_S = 600.0
"""How long ranks may take before they are called hung. Beside other work at a higher priority a start that needs 4 s
alone took 110 s."""
DUMP_S = 20.0

TINY: dict[str, Any] = {
    "name": "test",
    "model": {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2},
    "data": {"source": "synthetic", "seq_len": 32},
    "train": {"steps": 20, "global_batch": 8, "lr": 1e-3, "warmup_steps": 2, "log_every": 5},
    "checkpoint": {"every_s": None, "every_steps": 5},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def make_run(root: Path, overrides: dict[str, Any] | None = None, gpus: int = 0) -> RunDir:
    run = RunDir(root / RUN_ID)
    run.path.mkdir(parents=True, exist_ok=True)
    for folder in run.skeleton():
        folder.mkdir(exist_ok=True)
    job = merged(TINY, overrides or {})
    JobSpec.model_validate_json(json.dumps(job))
    run.run_json.write_text(json.dumps({"v": 1, "job": job, "gpus_per_rank": gpus, "tree": "/x/0123abcd"}))
    return run


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Ranks:
    """Living rank processes of one attempt."""

    run: RunDir
    procs: list[subprocess.Popen[bytes]]
    errors: dict[int, str] = field(default_factory=dict)

    def wait(self, timeout_s: float = PATIENCE_S) -> list[int]:
        deadline = time.monotonic() + timeout_s
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.procs]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ranks did not end:\n{self.story()}") from None

    def log(self, rank: int = 0) -> str:
        path = self.run.rank_log(rank)
        return path.read_text(errors="replace") if path.exists() else ""

    def story(self) -> str:
        """What every rank said, and where those that live are: the stacks of their threads."""
        asked = [p for p in self.procs if p.poll() is None and catches(p.pid, signal.SIGUSR1)]
        for p in asked:
            p.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + DUMP_S
        while len(dumps := self.dumps()) < len(asked) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # the last one is being written
        logs = [f"--- rank {k}: exit code {p.poll()}\n{self.log(k)}" for k, p in enumerate(self.procs)]
        return "\n".join([*logs, *(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in dumps)])

    def dumps(self) -> list[Path]:
        return sorted(path for path in self.run.stackdumps.glob("*.txt") if path.stat().st_size)

    def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not reached:\n{self.story()}"
            assert any(p.poll() is None for p in self.procs), f"all ranks ended:\n{self.story()}"
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        self.until(lambda: len(ledger(self.run)) >= step)


def rank_env(run: RunDir, rank: int, world: int, attempt: int, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/tmp"),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ORCH_RUN_DIR": str(run.path),
        "ORCH_RUN_ID": run.run_id,
        "ORCH_ATTEMPT": str(attempt),
        "ORCH_EPOCH": str(attempt),
        "ORCH_POD": "local",
        "ORCH_STACKDUMP": str(run.stackdump(rank)),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        **{k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")},
    }


@contextmanager
def launch_ranks(
    run: RunDir, world: int = 2, attempt: int = 1, argv: list[str] | None = None, env: dict[str, str] | None = None,
    fence: tuple[int, int] | None = None,
) -> Iterator[Ranks]:  # fmt: skip
    """`fence`: (rank, step) that is not passed before a halt was seen, see `fenced`."""
    if fence is not None:
        argv, env = [sys.executable, "-m", "tests.train.fenced"], {**(env or {}), "TEST_FENCE": "{}:{}".format(*fence)}
    port = free_port()
    run.epoch.write_text(f"{attempt}\n")
    procs = []
    for rank in range(world):
        with run.rank_log(rank).open("ab") as log:
            procs.append(
                subprocess.Popen(
                    argv or [sys.executable, "-m", "workloads.train"],
                    env={**rank_env(run, rank, world, attempt, port), **(env or {})},
                    cwd=run.path,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        yield Ranks(run, procs)
    finally:
        for p in procs:
            if p.poll() is None:
                p.send_signal(signal.SIGKILL)
            p.wait()


def train(
    run: RunDir, world: int = 2, attempt: int = 1, env: dict[str, str] | None = None, timeout_s: float = PATIENCE_S
) -> list[int]:
    with launch_ranks(run, world, attempt, env=env) as ranks:
        return ranks.wait(timeout_s)


def ledger(run: RunDir) -> list[dict[str, Any]]:
    try:
        return [json.loads(x) for x in run.ledger.read_text().splitlines()]
    except FileNotFoundError:
        return []


def exactness(run: RunDir) -> list[tuple[int, str, str]]:
    """What must be bitwise equal: (step, batch hash, loss)."""
    return [(r["step"], r["batch_hash"], r["loss"]) for r in ledger(run)]
