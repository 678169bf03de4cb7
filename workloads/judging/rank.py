"""The frame of such a rank: heartbeat and SIGTERM before torch, and what it ends with. Called by each `__main__`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from workloads.contract.errors import OrchError, UsageError
from workloads.contract.exitcodes import CliExit, RankExit
from workloads.runtime import Run, stacks
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.rankenv import RankEnv


def run_rank(judge: Callable[[RankEnv, Run], int], outside: UsageError) -> int:
    """The exit code of the process. `outside`: what is said where no run started it."""
    env = RankEnv.read()
    stacks.register(env)  # before torch: a dump request during its import would kill the rank
    if env is None:
        print(outside.render(), file=sys.stderr, flush=True)
        return int(CliExit.USAGE)
    run = Run(env)
    run.handle_sigterm()
    try:
        return judge(env, run)
    except OrchError as e:
        print(e.render(), file=sys.stderr, flush=True)
        return int(RankExit.REFUSED)
    except StaleEpochError as e:
        print(f"stale: {e}", file=sys.stderr, flush=True)
        return int(RankExit.STALE_EPOCH)
