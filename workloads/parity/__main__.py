"""`python -m workloads.parity`: the one rank of a run of kind `parity`. Started by a shim; never by hand outside a run.

    faulthandler, first beat -> torch, device -> kernels -> every cell that has no row yet -> table, verdict

Exit codes: 0 go, 78 no-go (verdict.json says how many), 75 halted between cells, 77 refused, 76 stale epoch, 2 not in a
run. By hand, without a run: `python -m kernels.parity`.
"""

from __future__ import annotations

import sys

from workloads.contract.errors import OrchError, UsageError
from workloads.contract.exitcodes import CliExit, RankExit
from workloads.contract.states import Phase
from workloads.runtime import Run, stacks
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.rankenv import RankEnv


def main() -> int:
    env = RankEnv.read()
    stacks.register(env)  # before torch: a dump request during its import would kill the rank
    if env is None:
        return _not_in_a_run()
    run = Run(env)
    run.handle_sigterm()
    try:
        return _judge(env, run)
    except OrchError as e:
        print(e.render(), file=sys.stderr, flush=True)
        return int(RankExit.REFUSED)
    except StaleEpochError as e:
        print(f"stale: {e}", file=sys.stderr, flush=True)
        return int(RankExit.STALE_EPOCH)


def _judge(env: RankEnv, run: Run) -> int:
    from workloads.parity.config import load
    from workloads.parity.place import take_place

    config = load(env)
    run.phase(Phase.LOADING)
    place = take_place(config)  # decides about the interpreter: kernels are imported behind it

    from workloads.parity.book import Book
    from workloads.parity.loop import judge_all

    return judge_all(env, run, config, place, Book(env, place.basis(config)))


def _not_in_a_run() -> int:
    error = UsageError(
        "E-PARITY-001",
        "python -m workloads.parity is the rank of a run, and ORCH_RUN_DIR is not set",
        fix="orch parity",
    )
    print(error.render(), file=sys.stderr, flush=True)
    return int(CliExit.USAGE)


if __name__ == "__main__":
    sys.exit(main())
