"""Halts by the hundred: a real shim and a real rank each, halted at some moment in some way; what lives afterwards?

Drawn from a seed: what the rank is like (`tests.halts.rank`), how the halt is asked for, when, and whether the shim is
killed meanwhile, which leaves the rest to the keeper's reaper. A halt is clean when not one process of the rank lives
at the moment its record says that it has ended. Called by the tests beside it and by `python -m tests.halts`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pods.remote import control
from pods.remote.left import left_of
from pods.remote.reap import reap_lost
from tests.halts.rank import SHAPES
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.process import MARK, ProcId, boot_id, rank_mark
from workloads.contract.records import HaltClocks, ShimOrder, as_wire
from workloads.contract.rundir import RunDir

ROOT = Path(__file__).parents[2]
RANK = Path(__file__).with_name("rank.py")
CLOCKS = HaltClocks(term_s=0.6, kill_s=1.2, now_term_s=0.2, now_kill_s=0.5)
LIMIT_S = 60.0
"""Two clocks, a sweep and a machine that does other things as well."""


@dataclass(frozen=True)
class Case:
    number: int
    shape: str
    how: str  # touch, text, now, request, stop
    delay_s: float  # after the rank is up; below 0: at once after the shim was started
    early: bool  # .HALT lies there before the shim is started
    shim_dies: bool


@dataclass(frozen=True)
class Ending:
    case: Case
    seconds: float  # from the request to the finished record; the clocks are in it
    cause: str
    processes: int
    left: tuple[int, ...]  # what lived when the record was finished
    story: str = ""


def cases(n: int, seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    shapes = list(SHAPES)
    for i in range(n):
        delay_s = rng.choice((-1.0, rng.uniform(0.0, 0.4)))
        how = rng.choice(("touch", "text", "now", "request", "stop"))
        early = how != "stop" and rng.random() < 0.1
        yield Case(i, shapes[i % len(shapes)], how, delay_s, early, not early and rng.random() < 0.15)


def drive(
    n: int, seed: int, at_once: int, folder: Path, told: Callable[[Ending], None] = lambda _: None
) -> list[Ending]:
    """Carry out `n` halts, `at_once` at a time, below `folder`."""
    found = []
    with ThreadPoolExecutor(at_once) as pool:
        for ending in pool.map(lambda case: halt_one(case, folder), cases(n, seed)):
            told(ending)
            found.append(ending)
    return found


def halt_one(case: Case, folder: Path) -> Ending:
    run = RunDir(folder / f"halt{case.number}-20261121T000000Z-{os.urandom(2).hex()}")
    for path in (run.path, *run.skeleton(), run.attempt_dir(1)):
        path.mkdir(mode=0o700)
    if case.early:
        run.halt.touch()
    shim = _start(case, run, folder)
    try:
        if case.delay_s >= 0:
            _until(lambda: _roster(run) or shim.poll() is not None)
            time.sleep(case.delay_s)
        began = time.monotonic()
        if not case.early:
            _ask(case, run)
        if case.shim_dies:
            time.sleep(max(case.delay_s, 0.0))
            shim.kill()
        ended = _until(lambda: _over(run, shim))
        seconds = time.monotonic() - began
        left = tuple(p.pid for p in {*_roster(run), *left_of(run)} if p.alive())
        row = try_read_json(run.rank_record(1, 0)) or {}
        bad = left or not ended or row.get("stayed")
        story = f"{case}\n{row}\n{_text(run.shim_log(0))}{_text(run.rank_log(0))}" if bad else ""
        return Ending(case, seconds, str(row.get("cause", "never started")), len(_roster(run)), left, story)
    finally:
        shim.kill()
        shim.wait(timeout=120)
        for ident in (*_roster(run), *left_of(run)):
            ident.signal(signal.SIGKILL)
        shutil.rmtree(run.path, ignore_errors=True)


def _start(case: Case, run: RunDir, folder: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-S", str(RANK), case.shape, str(run.path)]
    env = {"PATH": os.environ["PATH"], MARK: rank_mark(run.run_id, 1, 0), "ORCH_ATTEMPT": "1"}
    order = ShimOrder(
        run=run.run_id, run_dir=str(run.path), attempt=1, rank=0, local_rank=0, world_size=1, pod="local", argv=argv,
        cwd=str(run.path), env=env, halt=as_wire(CLOCKS),
    )  # fmt: skip
    path = run.rank_order(1, 0)
    atomic_write_json(path, as_wire(order), durable=False)
    shim_env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ORCH_LEASES": str(folder / "leases")}
    shim = [sys.executable, "-s", "-m", "workloads.shim", str(path)]
    return subprocess.Popen(shim, env=shim_env, stdin=subprocess.DEVNULL, start_new_session=True)


def _ask(case: Case, run: RunDir) -> None:
    match case.how:
        case "touch":
            run.halt.touch()
        case "text":
            run.halt.write_text("loss is not finite\n")
        case "now":
            atomic_write_json(run.halt, {"now": True, "who": "me"}, durable=False)
        case "request":
            control.halt(run, now=False, why="enough", who="me")
        case "stop":
            row = {"v": 1, "ts": time.time(), "who": "supervisor", "why": "", "term_s": 0.2, "kill_s": 0.6}
            atomic_write_json(run.stop_order(1), row, durable=False)


def _over(run: RunDir, shim: subprocess.Popen[bytes]) -> bool:
    """The record is finished: by the shim, or, once that is dead, by the reaper, which is the keeper's work."""
    if shim.poll() is not None:
        reap_lost(run, 1)
    row = try_read_json(run.rank_record(1, 0))
    return "ended" in row if row is not None else shim.poll() is not None


def _roster(run: RunDir) -> list[ProcId]:
    """Every process that the rank has ever had."""
    lines = _text(run.path / "roster").splitlines()
    return [ProcId(int(pid), int(start), boot_id()) for pid, start in (line.split() for line in lines)]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
