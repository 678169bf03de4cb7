"""`python -m workloads.bench`: the one rank of a run of kind `bench`. Started by a shim; never by hand outside a run.

    faulthandler, first beat -> torch, device -> memory probe -> every case that has no row yet -> table, plots, page

Exit codes: 0 every case was right, 78 one was not (verdict.json says how many), 75 halted between cases, 77 refused,
76 stale epoch, 2 not in a run. By hand, without a run: `python -m kernels.bench`.
"""

from __future__ import annotations

import sys

from workloads.contract.errors import UsageError
from workloads.contract.states import Phase
from workloads.judging.rank import run_rank
from workloads.runtime import Run
from workloads.runtime.rankenv import RankEnv
from workloads.train.caches import keep_caches


def main() -> int:
    outside = UsageError(
        "E-BENCH-001",
        "python -m workloads.bench is the rank of a run, and ORCH_RUN_DIR is not set",
        fix="orch bench   (without a run: python -m kernels.bench)",
    )
    return run_rank(_measure, outside)


def _measure(env: RankEnv, run: Run) -> int:
    keep_caches()
    from workloads.bench.config import load
    from workloads.bench.place import take_place

    config = load(env)
    run.phase(Phase.LOADING)
    place = take_place(config)

    from workloads.bench.loop import measure_all
    from workloads.judging.book import Book, Files

    book = Book(env, Files.of_bench(env.run, env.attempt), place.basis(config))
    return measure_all(env, run, config, place, book)


if __name__ == "__main__":
    sys.exit(main())
