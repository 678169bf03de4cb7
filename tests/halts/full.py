"""Halts of whole runs through the `orch` command: a keeper, Ray and a supervisor of its own home. See `__main__`.

Each rank has a double-forked child that has emptied its environment. A halt is clean when `orch halt` says `halted`
with exit code 0, the supervisor's verdict is `clean`, and nothing that enrolled itself lives.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.local.conftest import Orch, make_orch
from workloads.contract.process import ProcId, boot_id
from workloads.contract.rundir import RunDir

RANK = Path(__file__).with_name("rank.py")
SHAPES = ("daemon", "polite", "bare", "emptied")
UP_S = 600.0


def full_halts(n: int, say: Callable[[str], None]) -> tuple[list[float], int]:
    """(seconds of each `orch halt`, how many left something)."""
    orch = make_orch()
    times, left = [], 0
    try:
        for i in range(n):
            seconds, problem = halt_whole(orch, SHAPES[i % len(SHAPES)], f"full{i}")
            times.append(seconds)
            left += bool(problem)
            say(f"{i + 1} of {n}: {seconds:.1f} s, {problem or 'clean'}")
    finally:
        subprocess.run([sys.executable, "-m", "orchestrator.cli", "down"], env=orch.env, check=False, timeout=120)
        orch.remove()
    return times, left


def halt_whole(orch: Orch, shape: str, name: str) -> tuple[float, str]:
    """(seconds, what was wrong)."""
    argv = [sys.executable, "-I", "-S", str(RANK), shape]
    script = f'exec {" ".join(argv)} "$ORCH_RUN_DIR"'
    run = orch.home.run(json.loads(orch("launch", "--json", "--name", name, "--", "sh", "-c", script))["run"])
    deadline = time.monotonic() + UP_S
    while len(roster(run)) < 2 and not (shape == "polite" and run.heartbeat(0).exists()):
        assert time.monotonic() < deadline, orch.story(run)
        time.sleep(0.1)
    began = time.monotonic()
    told = json.loads(orch("halt", run.run_id, "--now", "--json"))["runs"][0]
    seconds = time.monotonic() - began
    living = [p.pid for p in roster(run) if p.alive()]
    verdicts = [json.loads(e)["why"] for e in run.events.read_text().splitlines() if '"what":"verdict"' in e]
    problem = "" if (told["state"], verdicts, living) == ("halted", ["clean"], []) else (
        f"{run.run_id} ({shape}): {told['state']}, verdict {verdicts}, pids {living} live\n{orch.story(run)}"
    )  # fmt: skip
    return seconds, problem


def roster(run: RunDir) -> list[ProcId]:
    path = run.path / "roster"
    lines = path.read_text().splitlines() if path.exists() else []
    return [ProcId(int(pid), int(start), boot_id()) for pid, start in (line.split() for line in lines)]
