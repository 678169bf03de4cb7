"""A run directory, orders and real shims for the tests of the shim, the reaper and the dumps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.process import MARK, ProcId, marked, rank_mark
from workloads.contract.records import HaltClocks, ShimOrder, as_wire
from workloads.contract.rundir import RunDir

ROOT = Path(__file__).parents[2]
SITE = ROOT / "workloads" / "runtime" / "site"
SHORT = HaltClocks(term_s=1.0, kill_s=2.0, now_term_s=0.5, now_kill_s=1.0)


def until(condition: Callable[[], Any], timeout_s: float = 60.0, story: Callable[[], object] = lambda: "") -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {story()}")


@dataclass
class Lab:
    """One run with real shims. `close` ends everything by pid."""

    run: RunDir
    leases: Path
    shims: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path) -> Lab:
        run = RunDir(folder / f"lab-20261121T000000Z-{os.urandom(2).hex()}")
        for path in (run.path, *run.skeleton(), run.attempt_dir(1)):
            path.mkdir(mode=0o700)
        return cls(run, folder / "leases")

    def order(self, argv: list[str], *, rank: int = 0, env: dict[str, str] | None = None, **kw: Any) -> ShimOrder:
        whole = {
            "PATH": os.environ["PATH"],
            MARK: rank_mark(self.run.run_id, 1, rank),
            "RANK": str(rank),
            "ORCH_RUN_DIR": str(self.run.path),
            "ORCH_STACKDUMP": str(self.run.stackdump(rank, 0.0)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": f"{SITE}:{ROOT}",
        } | (env or {})
        kw.setdefault("halt", as_wire(SHORT))
        return ShimOrder(
            run=self.run.run_id, run_dir=str(self.run.path), attempt=1, rank=rank, local_rank=rank, world_size=1,
            pod="local", argv=argv, cwd=kw.pop("cwd", str(self.run.path)), env=whole, **kw,
        )  # fmt: skip

    def start(self, order: ShimOrder, *, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        path = self.run.rank_order(order.attempt, order.rank)
        atomic_write_json(path, as_wire(order))
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ORCH_LEASES": str(self.leases)}
        shim = subprocess.Popen(
            [*prefix, sys.executable, "-s", "-m", "workloads.shim", str(path)],
            env=env, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.shims.append(shim)
        return shim

    def sh(self, script: str, **kw: Any) -> subprocess.Popen[bytes]:
        return self.start(self.order(["sh", "-c", script], **kw))

    def python(self, code: str, **kw: Any) -> subprocess.Popen[bytes]:
        return self.start(self.order([sys.executable, "-c", code], **kw))

    def record(self, rank: int = 0) -> dict[str, Any]:
        return try_read_json(self.run.rank_record(1, rank)) or {}

    def log(self, rank: int = 0) -> bytes:
        path = self.run.rank_log(rank)
        return path.read_bytes() if path.exists() else b""

    def story(self, rank: int = 0) -> str:
        return f"{self.record(rank)}\n{self.shim_says(rank)}\n{self.log(rank)!r}"

    def shim_says(self, rank: int = 0) -> str:
        path = self.run.shim_log(rank)
        return path.read_text() if path.exists() else ""

    def says(self, text: bytes, rank: int = 0) -> None:
        until(lambda: text in self.log(rank), story=lambda: self.story(rank))

    def ended(self, rank: int = 0, timeout_s: float = 60.0) -> dict[str, Any]:
        until(lambda: "ended" in self.record(rank), timeout_s, lambda: self.story(rank))
        return self.record(rank)

    def rank(self, rank: int = 0) -> ProcId:
        row = until(lambda: self.record(rank), story=lambda: self.story(rank))
        return ProcId(row["pid"], row["start_time"], row["boot_id"])

    def marked(self, rank: int = 0) -> list[ProcId]:
        return marked(rank_mark(self.run.run_id, 1, rank))

    def close(self) -> None:
        for shim in self.shims:
            shim.kill()
            shim.wait(timeout=120)
        for ident in marked(self.run.run_id):
            ident.signal(signal.SIGKILL)
