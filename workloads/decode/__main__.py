"""`python -m workloads.decode`: the one rank of a run of kind `decode`. Started by a shim; never by hand outside a run.

    faulthandler, first beat -> prompts -> torch, device -> read bandwidth (CUDA) -> weights -> every turn without a row

Exit codes: 0 every turn was answered, 75 halted (a turn that was begun is made again), 77 refused, 76 stale epoch,
2 not in a run.
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
        "E-DECODE-001",
        "python -m workloads.decode is the rank of a run, and ORCH_RUN_DIR is not set",
        fix="orch decode",
    )
    return run_rank(_decode, outside)


def _decode(env: RankEnv, run: Run) -> int:
    from workloads.decode.config import load

    config = load(env)
    run.phase(Phase.LOADING)

    from workloads.decode.place import take_place

    place = take_place(config)  # decides about the interpreter: kernels are imported behind it

    from workloads.decode.loop import decode_all
    from workloads.decode.weights import load_model

    return decode_all(env, run, config, place, load_model(config, place, env.run.path.parents[1]))


if __name__ == "__main__":
    sys.exit(main())
