"""What a bench run leaves: `bench.md`, plots, `bench.html`, `thresholds.json`, and last of all `verdict.json`.

The verdict speaks of right and wrong alone: go when every case answered right. A missed goal stands in its row and
fails nothing; whether something became slower is for `orch bench --compare`. Called by `workloads.bench.loop`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from workloads.bench.config import BenchConfig
from workloads.bench.matrix import is_good
from workloads.bench.place import Place
from workloads.bench.tables import facts_of, markdown
from workloads.contract.files import atomic_write, atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.judging.book import Row
from workloads.runtime.rankenv import RankEnv

GO, NO_GO = "go", "no-go"


def conclude(env: RankEnv, config: BenchConfig, place: Place, rows: Sequence[Row], absent: Sequence[str]) -> RunVerdict:
    """The verdict over all cases; everything else first. OSError when a file cannot be written.

    `absent`: suites without a case for this device.
    """
    wrong = sum(not is_good(r) for r in rows)
    why = f"{wrong} of {_cases(len(rows))}" if wrong else _cases(len(rows))
    why += f"; no case here for {', '.join(absent)}" if absent else ""
    asked = config.asked
    verdict = RunVerdict(
        env.run_id, env.attempt, NO_GO if wrong else GO, why, time.time(),
        data={
            "cases": len(rows), "wrong": wrong, "absent": list(absent), "suites": list(asked.suites),
            "quick": asked.quick, "seed": asked.seed, "environment": place.environment(), "commit": config.commit,
            "dirty": config.dirty, "command": config.command,
        },
    )  # fmt: skip
    facts = facts_of(env, config, place, rows)
    atomic_write(env.run.bench_report, markdown(verdict, facts, rows).encode())
    atomic_write_json(env.run.verdict, as_wire(verdict))
    return verdict


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"
