"""How long from `orch launch` to the first step, with Ray down and with Ray up. Called by `tests.bench_cli --launch`.

A real keeper, a real Ray and two real ranks in an $ORCH_HOME of their own, which is taken down again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workloads.contract.beats import BeatReader
from workloads.contract.rundir import OrchHome

LIMIT_S = 120.0


def first_step_s(home: OrchHome, env: dict[str, str]) -> float:
    """Seconds from typing the command to the first step of any rank, by the ranks' own beats."""
    argv = [sys.executable, "-m", "orchestrator.cli"]
    began = time.time()
    out = subprocess.run(
        [*argv, "launch", "tiny", "--set", "train.steps=30", "--json"],
        env=env, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    run = home.run(json.loads(out.stdout)["run"])
    readers = [BeatReader(run.heartbeat(rank), rank) for rank in (0, 1)]
    stepped: float | None = None
    while stepped is None:
        if time.time() - began > LIMIT_S:
            raise TimeoutError(f"no step in {LIMIT_S:.0f} s: {run.path}")
        stepped = min((b.ts for r in readers for b in r.read() if b.get("step") is not None), default=None)
        time.sleep(0.05)
    subprocess.run([*argv, "halt", "--all", "--now"], env=env, check=True, capture_output=True, timeout=90)
    return stepped - began


def cold_and_warm_s(root: Path) -> tuple[float, float]:
    """(with Ray down, with Ray up), seconds."""
    with tempfile.TemporaryDirectory(prefix="orch-b-", dir="/tmp") as temp:
        home = OrchHome(Path(temp) / "home")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ORCH_"))}
        env = kept | {"ORCH_HOME": str(home.path), "ORCH_LEASES": f"{temp}/leases", "PYTHONPATH": str(root)}
        try:
            return first_step_s(home, env), first_step_s(home, env)
        finally:
            argv = [sys.executable, "-m", "orchestrator.cli"]
            for verb in (["halt", "--all", "--now"], ["down"]):
                subprocess.run([*argv, *verb], env=env, check=False, capture_output=True, timeout=90)
