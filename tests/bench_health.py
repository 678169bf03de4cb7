"""`make bench-health`: what watching a run costs. Not a test: it prints.

    python -m tests.bench_health [--save runbooks/results/health.jsonl]

A look of the rules at 8 and 64 ranks that beat; heartbeat lines read from a file and judged; and, on a real rank under
a real shim, the share of a 20 ms step that beats, shim, rules and guard take together: seconds that the step waits for
its beat, and CPU seconds of the others a second. GPU figures of the guard (NVML) need a GPU and are not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.health.facts import GpuFacts, PodFacts, ProcessState, RankFacts  # noqa: E402
from orchestrator.health.monitor import Monitor  # noqa: E402
from pods.keeper.guard import Guard  # noqa: E402
from tests.benchrows import Row, report  # noqa: E402
from tests.pod.shimlab import Lab, until  # noqa: E402
from workloads.contract.beats import Beat, BeatReader  # noqa: E402
from workloads.contract.config.health import HealthSpec  # noqa: E402
from workloads.contract.files import dump_json  # noqa: E402
from workloads.contract.states import Phase  # noqa: E402

STEP_S = 0.02
LOOKS, LINES, RANKS = 400, 50_000, 8
WATCHED_S = 20.0
FIGURES = {
    "loss": 2.5, "lr": 3e-4, "grad_norm": 0.7, "toks_per_s": 51234.5, "step_time_s": 0.0213, "dt_fetch_s": 0.001,
    "fetch_p50_s": 0.001, "fetch_p95_s": 0.002, "gpu_mem_alloc": 61234.5, "gpu_mem_reserved": 71234.5,
    "data_source": "stdlib",
}  # fmt: skip
TRAINER = f"""
import json, os, sys, time
from workloads.runtime.heartbeat import Heartbeat
from workloads.runtime.rankenv import RankEnv
heart, waited, figures = Heartbeat(RankEnv.read()), [], json.loads({json.dumps(json.dumps(FIGURES))})
end = time.monotonic() + {WATCHED_S}
for step in range(10**9):
    time.sleep({STEP_S})
    began = time.perf_counter()
    heart.beat(step=step, **figures)
    waited.append(time.perf_counter() - began)
    if time.monotonic() > end:
        break
print("waited", sum(waited) / len(waited), flush=True)
time.sleep(60)
"""


def row_of(seq: int, rank: int) -> dict[str, object]:
    head = {"v": 1, "seq": seq, "ts": 1.8e9 + seq, "msg": "progress", "rank": rank, "world_size": RANKS, "attempt": 1}
    return {**head, "step": seq * 50, **FIGURES, "loss": 2.5 + seq % 7 / 100}


def facts_of(world: int, seq: int | None) -> list[RankFacts]:
    fields = {} if seq is None else {"step": seq * 50, **FIGURES, "loss": 2.5 + seq % 7 / 100}
    beat = () if seq is None else (Beat(seq, 1.8e9 + seq, Phase.PROGRESS, 0, world, 1, fields),)
    return [
        RankFacts(r, "p", ProcessState.RUNNING, tuple(Beat(b.seq, b.ts, b.msg, r, world, 1, b.fields) for b in beat))
        for r in range(world)
    ]


def look_us(world: int) -> float:
    """CPU microseconds of a look; every rank beats at every second one, as at two looks a second."""
    monitor = Monitor(HealthSpec(), world, beats_expected=True)
    pod = PodFacts("p", 1.0, 10**12, 2 * 10**12, True, 10**9, 10**9, 50, 100, (GpuFacts("GPU-1", True, 1.0, 2.0),), 0.0)
    times = []
    for i in range(LOOKS):
        facts = facts_of(world, i // 2 if i % 2 else None)
        began = time.thread_time()
        monitor.look(i * 0.5, facts, [pod], 1)
        times.append(time.thread_time() - began)
    return statistics.mean(times[LOOKS // 2 :]) * 1e6


def lines_s(folder: Path) -> float:
    """CPU seconds to read 50,000 heartbeat lines of eight ranks, a hundred at a look, and to judge them."""
    files = [folder / f"heartbeat_rank{r}.jsonl" for r in range(RANKS)]
    readers = [BeatReader(path, r) for r, path in enumerate(files)]
    monitor = Monitor(HealthSpec(), RANKS, beats_expected=True)
    spent, each = 0.0, 100
    for look in range(LINES // RANKS // each):
        for rank, path in enumerate(files):
            with path.open("ab") as f:
                f.writelines(dump_json(row_of(look * each + i, rank)) for i in range(each))
        began = time.thread_time()
        facts = [RankFacts(r, "p", ProcessState.RUNNING, tuple(x.read())) for r, x in enumerate(readers)]
        monitor.look(look * 0.5, facts, [], 1)
        spent += time.thread_time() - began
        assert sum(len(f.beats) for f in facts) == RANKS * each
    return spent * LINES / (LINES // RANKS // each * RANKS * each)


def cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def thread_cpu_s(work: Callable[[], object], times: int) -> float:
    """CPU seconds of one call."""
    began = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - began) / times


def shares(folder: Path) -> dict[str, float]:
    """Shares of one core, of one rank that makes steps of 20 ms."""
    lab = Lab.make(folder)
    try:
        shim = lab.python(TRAINER, env={"WORLD_SIZE": "1"})
        rank = lab.rank()
        guard = Guard(lambda: [(lab.run, {})], lambda text: None, threading.Event())
        time.sleep(2.0)
        began, before = time.monotonic(), cpu_s(shim.pid)
        guard_s = thread_cpu_s(lambda: guard.look_at_memory(time.monotonic()), 100)
        until(lambda: b"waited" in lab.log(), WATCHED_S * 3, lab.story)
        assert rank.alive()
        shim_share = (cpu_s(shim.pid) - before) / (time.monotonic() - began)
        waited_s = float(lab.log().split(b"waited ")[1].split()[0])
    finally:
        lab.close()
    return {
        "the step waits for its beat": waited_s / STEP_S,
        "the shim": shim_share,
        "the rules, 2 looks a second at 8 ranks": look_us(8) / 1e6 * 2 / 8,
        "the guard, 2 looks a second": guard_s * 2,
    }


def measure() -> list[Row]:
    rows = [Row(f"rules, a look at {n} ranks, CPU", look_us(n), "us", None) for n in (8, 64)]
    with tempfile.TemporaryDirectory() as temp:
        rows.append(Row("50,000 heartbeat lines, read and judged, CPU", lines_s(Path(temp)), "s", 1.0))
        parts = shares(Path(temp))
    rows += [Row(f"{case}, of a 20 ms step", share * 100, "%", None) for case, share in parts.items()]
    rows.append(Row("beats, shim, rules and guard, of a 20 ms step", sum(parts.values()) * 100, "%", 0.5))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="What watching a run costs.")
    parser.add_argument("--save", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    return report(measure(), "health", "make bench-health", args.save)


if __name__ == "__main__":
    sys.exit(main())
