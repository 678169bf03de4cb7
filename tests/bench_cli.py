"""`make bench-cli`: what the command costs, measured on processes of its own. Not a test: it prints.

    python -m tests.bench_cli [--repeat N] [--launch] [--operator-venv DIR] [--save runbooks/results/cli.jsonl]

Prints a table against the limits, then a JSON line a case (machine, versions, commit, date), as `runbooks.evidence`
wants them; `--save` appends those to a file. Exit 1 when a limit is exceeded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.bench_launch import cold_and_warm_s  # noqa: E402
from tests.benchrows import Row, report  # noqa: E402
from workloads.contract.files import atomic_write_json, dump_json  # noqa: E402
from workloads.contract.process import ProcId  # noqa: E402
from workloads.contract.records import Status, as_wire  # noqa: E402
from workloads.contract.rundir import OrchHome, make_run_id  # noqa: E402
from workloads.runtime.heartbeat import Heartbeat  # noqa: E402
from workloads.runtime.rankenv import RankEnv  # noqa: E402

HEAVY = ("torch", "ray", "datasets", "paramiko", "fabric", "pydantic")
BEATS = 20_000


def median_s(argv: Sequence[str], env: dict[str, str], repeat: int) -> float:
    """Median wall seconds of whole processes; the first one (cold caches) is not counted."""
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def fill(home: OrchHome, count: int, first: int = 0) -> None:
    """`count` runs of two ranks with 200 beats each; those whose number is a multiple of ten are running."""
    me = ProcId.me()
    atomic_write_json(home.keeper_record, {**asdict(me), "socket": "none"}, durable=False)
    for i in range(first, first + count):
        run = home.run(make_run_id(f"bench-{i}", 1.795e9 + i))
        for folder in run.skeleton():
            folder.mkdir(parents=True)
        doc = {
            "v": 1,
            "run": run.run_id,
            "name": f"bench-{i}",
            "kind": "train",
            "created": 1.795e9 + i,
            "world_size": 2,
        }
        run.run_json.write_bytes(dump_json({**doc, "pods": [{"name": "local", "ranks": [0, 1]}]}))
        state, now = ("running" if i % 10 == 0 else "succeeded"), time.time()
        status = Status(run.run_id, f"bench-{i}", state, "", 1, now, now, ["local"], supervisor=asdict(me))
        atomic_write_json(run.status, as_wire(status), durable=False)
        for rank in (0, 1):
            beats = [
                {"v": 1, "seq": s, "ts": now, "msg": "progress", "rank": rank, "world_size": 2, "attempt": 1, "step": s}
                for s in range(200)
            ]
            run.heartbeat(rank).write_bytes(b"".join(dump_json(b) for b in beats))


def beat_cost_us(home: OrchHome) -> float:
    """Microseconds a heartbeat costs a step, at its dearest: a line built and written for every one."""
    run = home.run(make_run_id("beats", 1.7e9))
    run.path.mkdir(parents=True)
    env = RankEnv.read({"ORCH_RUN_DIR": str(run.path), "WORLD_SIZE": "2"})
    assert env is not None
    heart = Heartbeat(env)
    began = time.perf_counter()
    for i in range(BEATS):
        heart.phase("progress", step=i, loss=2.5, lr=3e-4, grad_norm=1.0, toks_per_s=5e4, step_time_s=0.1)
    cost = (time.perf_counter() - began) / BEATS * 1e6
    heart.close()
    return cost


def heavy_imports(env: dict[str, str]) -> list[str]:
    code = "import sys\nfrom orchestrator.cli.main import main\nmain(['--help'])\n"
    code += f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True, timeout=60)
    return out.stdout.splitlines()[-1].split()


def size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) below `folder`, links not followed."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


def measure(repeat: int, venv: Path | None, *, launch: bool) -> list[Row]:
    orch = [sys.executable, "-m", "orchestrator.cli"]
    rows = []
    with tempfile.TemporaryDirectory() as temp:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "ORCH_HOME": f"{temp}/none"}
        rows.append(Row("bare python", median_s([sys.executable, "-c", ""], env, repeat), "s", None))
        rows.append(Row("orch --help", median_s([*orch, "--help"], env, repeat), "s", 0.25))
        rows.append(Row("heavy imports of --help", float(len(heavy_imports(env))), "modules", 0))
        for count, limit in ((3, 0.4), (200, None)):
            home = OrchHome(Path(temp) / f"home{count}")
            home.keeper.mkdir(parents=True, mode=0o700)
            fill(home, count)
            env = {**env, "ORCH_HOME": str(home.path)}
            rows.append(Row(f"orch status, {count} runs", median_s([*orch, "status"], env, repeat), "s", limit))
        rows.append(Row("heartbeat line, built and written", beat_cost_us(OrchHome(Path(temp) / "beats")), "us", 50))
    if launch:
        cold_s, warm_s = cold_and_warm_s(ROOT)
        rows.append(Row("launch to first step, Ray down", cold_s, "s", 40))
        rows.append(Row("launch to first step, Ray up", warm_s, "s", 20))
    if venv is not None:
        rows.append(Row("operator install", size_mb(venv / "lib"), "MB", 80))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="What the orch command costs.")
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--launch", action="store_true", help="launch real runs too: about a minute")
    parser.add_argument("--operator-venv", type=Path, help="a virtual environment with `pip install orch-runs` alone")
    parser.add_argument("--save", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    rows = measure(args.repeat, args.operator_venv, launch=args.launch)
    return report(rows, "cli", "make bench-cli", args.save)


if __name__ == "__main__":
    sys.exit(main())
