"""What polling many pods costs the operator. Not a test: it prints, and exits 1 above the limit.

    python -m tests.bench_mirror [--pods 64] [--every-s 5] [--rounds 6] [--save runbooks/results/cli.jsonl]

Each pod is a process of its own with a home of its own and one running run of two ranks, whose heartbeats and status
change before every round. Measured: CPU seconds of this process (reading `os.times`) a second, a look at every pod
included, after a first round that fills the copies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.runs.fleet import ROUND_BYTES  # noqa: E402
from orchestrator.runs.source import FarSource  # noqa: E402
from pods.pod import FarPod  # noqa: E402
from pods.transport.fleet import each  # noqa: E402
from pods.transport.local import LocalTransport  # noqa: E402
from tests.cli.conftest import Made, make_run  # noqa: E402
from tests.mirror.conftest import keeper_here  # noqa: E402
from workloads.contract.rundir import OrchHome  # noqa: E402

LIMIT_SHARE = 0.05


def site(folder: Path, index: int) -> tuple[Made, FarPod]:
    there = OrchHome(folder / f"pod{index}")
    there.path.mkdir()
    keeper_here(there)
    made = make_run(there, f"run-{index}")
    write(made, 0)
    return made, FarPod(f"pod{index}", LocalTransport(), root=str(there.path), python=sys.executable)


def write(made: Made, step: int) -> None:
    made.status("running", "all ranks beat", supervisor=made.supervised())
    for rank in range(made.world):
        made.record(rank)
        for i in range(5):
            made.beat(rank, time.time(), step=step * 5 + i, steps=1000, loss=1.5, toks_per_s=5e4)


def cpu_s() -> float:
    t = os.times()
    return t.user + t.system


def measure(pods: int, every_s: float, rounds: int) -> tuple[float, float]:
    """(share of a core, seconds until the last of a round had answered)."""
    with tempfile.TemporaryDirectory(prefix="orch-mirror-") as folder:
        home = OrchHome(Path(folder) / "home")
        home.path.mkdir()
        sites = [site(Path(folder), i) for i in range(pods)]
        sources = [
            FarSource(home, home.mirrored(made.run.run_id), pod.name, lambda pod=pod: pod) for made, pod in sites
        ]
        try:
            print(f"{pods} pods connect, {ROUND_BYTES >> 20} MiB a round", file=sys.stderr)
            for source in sources:
                source.refresh()
            spent, walls = 0.0, []
            began = time.monotonic()
            for turn in range(rounds):
                for made, _ in sites:
                    write(made, turn + 1)
                before, at = cpu_s(), time.monotonic()
                found = each(sources, lambda s: (s.refresh(), s.view()))
                walls.append(time.monotonic() - at)
                spent += cpu_s() - before
                bad = [f for f in found if not isinstance(f, tuple) or f[1].state != "running"]
                assert not bad, bad[:1]
                time.sleep(max(began + (turn + 1) * every_s - time.monotonic(), 0))
            return spent / (time.monotonic() - began), max(walls)
        finally:
            for _, pod in sites:
                pod.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=64)
    parser.add_argument("--every-s", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    share, wall_s = measure(options.pods, options.every_s, options.rounds)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    common = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}", "commit": commit.strip(),
        "date": time.strftime("%Y-%m-%d"), "command": f"python -m tests.bench_mirror --pods {options.pods}",
    }  # fmt: skip
    rows = [
        {"case": f"poll {options.pods} pods", "value": round(share * 100, 2), "unit": "% of a core", "limit": 5.0},
        {"case": f"look at {options.pods} pods once", "value": round(wall_s, 3), "unit": "s", "limit": None},
    ]
    for row in rows:
        print(json.dumps({**row, **common}))
        if options.save:
            with options.save.open("a") as f:
                f.write(json.dumps({**row, **common}) + "\n")
    return 0 if share <= LIMIT_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
