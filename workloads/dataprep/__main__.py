"""`python -m workloads.dataprep`: the one rank of a run of kind `data`. Started by a shim; never by hand outside a run.

    faulthandler, first beat -> the job -> check or prepare -> verdict

Exit codes: 0 go, 78 no-go (verdict.json says why), 75 halted (finished parts are kept), 1 a source or worker was lost
(a restart goes on), 77 refused job, 76 stale epoch, 2 not in a run. No torch here.
"""

from __future__ import annotations

import sys

from workloads.contract.errors import UsageError
from workloads.judging.rank import run_rank
from workloads.runtime import Run
from workloads.runtime.rankenv import RankEnv


def main() -> int:
    outside = UsageError(
        "E-DATA-047",
        "python -m workloads.dataprep is the rank of a run, and ORCH_RUN_DIR is not set",
        fix="orch data check tiny",
    )
    return run_rank(_work, outside)


def _work(env: RankEnv, run: Run) -> int:
    from workloads.dataprep.task import carry_out
    from workloads.judging.origin import read_origin

    return carry_out(env, run, read_origin(env, "E-DATA-048"))


if __name__ == "__main__":
    sys.exit(main())
