"""`python -m workloads.train`: one rank of a run of kind `train`. Started by a shim; never by hand outside a run.

    faulthandler, first beat -> torch -> build (config, machine, data, model, resume) -> train -> exit code

Exit codes: 0 done, 75 checkpointed or a peer was lost ("resume me"), 76 stale epoch, 77 refused, 1 the data are
not there, 2 not in a run.
"""

from __future__ import annotations

import os
import sys

from workloads.contract.errors import MissingDataError, OrchError, UsageError
from workloads.contract.exitcodes import CliExit, RankExit
from workloads.data.blocks import SourceGone
from workloads.runtime import Run, stacks
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.rankenv import RankEnv
from workloads.train.caches import keep_caches


def main() -> int:
    env = RankEnv.read()
    stacks.register(env)  # before torch: a dump request during its import would kill the rank
    if env is None:
        return _not_in_a_run()
    run = Run(env)
    run.handle_sigterm()
    try:
        return _train(env, run)
    except OrchError as e:
        print(e.render(), file=sys.stderr, flush=True)
        return 1 if isinstance(e, MissingDataError) else int(RankExit.REFUSED)  # they may come back
    except SourceGone as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 1  # another attempt may find it there again
    except StaleEpochError as e:
        print(f"stale: {e}", file=sys.stderr, flush=True)
        return int(RankExit.STALE_EPOCH)


def _train(env: RankEnv, run: Run) -> int:
    keep_caches()
    import torch.distributed as dist

    from workloads.train.build import build
    from workloads.train.machine import lost_peer

    try:
        code = build(env, run).train()
    except RuntimeError as e:
        if not lost_peer(e):
            raise
        print(f"a peer was lost: {str(e).splitlines()[0]}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(RankExit.CHECKPOINTED)  # tearing the broken group down may wait for the peer
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


def _not_in_a_run() -> int:
    error = UsageError(
        "E-TRAIN-001",
        "python -m workloads.train is one rank of a run, and ORCH_RUN_DIR is not set",
        fix="orch launch tiny --follow",
    )
    print(error.render(), file=sys.stderr, flush=True)
    return int(CliExit.USAGE)


if __name__ == "__main__":
    sys.exit(main())
