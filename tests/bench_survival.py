"""`make bench-survival`: how soon a dead rank, a hang and a halt are dealt with. Not a test: it prints.

    python -m tests.bench_survival [--save runbooks/results/survival.jsonl]

A real keeper, a real Ray and the two ranks of the recipe `tiny` in an $ORCH_HOME of their own; the limits of the rules
are the defaults. Every figure is a difference of times that the parts themselves wrote down.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchrows import Row, report
from tests.local.conftest import Orch, events_of, make_orch, rank_pid, steps_of, wait_for
from workloads.contract.beats import BeatReader
from workloads.contract.files import try_read_json
from workloads.contract.rundir import RunDir

COMMAND = "make bench-survival"
EVERY = 40


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench_survival")
    parser.add_argument("--save", type=Path, metavar="FILE", help="append a row a case")
    asked = parser.parse_args()
    orch = make_orch()
    try:
        rows = measure(orch)
    finally:
        orch.remove()
    return report(rows, "survival", COMMAND, asked.save)


def measure(orch: Orch) -> list[Row]:
    run = orch.launch("tiny", "--set", "train.steps=100000", "--set", f"checkpoint.every_steps={EVERY}")
    orch.wait_step(run, EVERY + 10)
    return [*_death(orch, run), *_hang(orch, run), *_halt(orch, run)]


def _death(orch: Orch, run: RunDir) -> list[Row]:
    died = time.time()
    rank_pid(run, 1, 1).signal(signal.SIGKILL)
    seen = _event(orch, run, "rank-exit", lambda e: True)["ts"]
    readers = [BeatReader(run.heartbeat(rank), rank) for rank in (0, 1)]
    found: list[float] = []

    def stepped() -> bool:
        found.extend(b.ts for r in readers for b in r.read() if b.attempt == 2 and b.get("step") is not None)
        return bool(found)

    wait_for(stepped, 120, lambda: orch.story(run))
    return [
        Row("death of a rank seen by the supervisor", seen - died, "s", 2),
        Row("kill -9 of a rank to the first new step", min(found) - died, "s", 15),
    ]


def _hang(orch: Orch, run: RunDir) -> list[Row]:
    """A rank is stopped for as long as it takes to be told; it goes on and nothing was ended."""
    orch.wait_step(run, steps_of(run)[-1] + EVERY)
    rank, stopped = rank_pid(run, 2, 1), time.time()
    rank.signal(signal.SIGSTOP)
    try:
        told = _event(orch, run, "health", lambda e: e["data"]["rule"] == "no_step")
        dump = _event(orch, run, "dump", lambda e: e["ts"] > stopped)
        asked = min(e["ts"] for e in events_of(run, "health") if e["ts"] > stopped and e["data"]["rung"] == "dump")
    finally:
        rank.signal(signal.SIGCONT)
    orch.wait_step(run, steps_of(run)[-1] + 5)
    return [
        Row("a stopped rank to the verdict no_step", told["ts"] - stopped, "s", 40),
        Row("verdict to the dump of all ranks on disk", dump["ts"] - asked, "s", 5),
    ]


def _halt(orch: Orch, run: RunDir) -> list[Row]:
    asked = time.time()
    orch("halt", run.run_id)
    acks = [try_read_json(run.halt_ack(rank)) or {} for rank in (0, 1)]
    return [Row("`orch halt` to the last acknowledgement", max(a["ts"] for a in acks) - asked, "s", None)]


def _event(orch: Orch, run: RunDir, what: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    def first() -> dict[str, Any] | None:
        return next((e for e in events_of(run, what) if fits(e)), None)

    found: dict[str, Any] = wait_for(first, 120, lambda: orch.story(run))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
