"""`python -m workloads.parity`: the one rank of a run of kind `parity`. Started by a shim; never by hand outside a run.

    faulthandler, first beat -> torch, device -> kernels -> every cell that has no row yet -> table, verdict

Exit codes: 0 go, 78 no-go (verdict.json says how many), 75 halted between cells, 77 refused, 76 stale epoch, 2 not in a
run. By hand, without a run: `python -m kernels.parity`.
"""

from __future__ import annotations

import sys

from workloads.contract.errors import UsageError
from workloads.contract.states import Phase
from workloads.judging.rank import run_rank
from workloads.runtime import Run
from workloads.runtime.rankenv import RankEnv


def main() -> int:
    outside = UsageError(
        "E-PARITY-001",
        "python -m workloads.parity is the rank of a run, and ORCH_RUN_DIR is not set",
        fix="orch parity",
    )
    return run_rank(_judge, outside)


def _judge(env: RankEnv, run: Run) -> int:
    from workloads.parity.config import load
    from workloads.parity.place import take_place

    config = load(env)
    run.phase(Phase.LOADING)
    place = take_place(config)  # decides about the interpreter: kernels are imported behind it

    from workloads.judging.book import Book, Files
    from workloads.parity.loop import judge_all

    book = Book(env, Files.of_parity(env.run, env.attempt), place.basis(config))
    return judge_all(env, run, config, place, book)


if __name__ == "__main__":
    sys.exit(main())
