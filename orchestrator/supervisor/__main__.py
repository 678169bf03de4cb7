"""`python -m orchestrator.supervisor <run dir>`: the entrypoint of the Ray job `<run id>.<n>`.

Creates the run's Supervisor actor, or finds the living one, makes sure that it works, and ends. Idempotent; started by
the keeper over the Jobs API.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from orchestrator.supervisor.actor import Supervisor
from orchestrator.supervisor.raynames import NAMESPACE, worker_env
from orchestrator.supervisor.spec import parse_spec
from workloads.contract.errors import OrchError
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir, run_name_of

ENSURE_S = 60.0


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m orchestrator.supervisor <run dir>", file=sys.stderr)
        return 2
    run = RunDir(Path(argv[1]).absolute())
    try:
        run_name_of(run.run_id)
        spec = parse_spec(read_json(run.run_json))
    except (OSError, ValueError, OrchError) as e:
        print(f"{run.path}: {e}", file=sys.stderr)
        return 2
    import ray

    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), namespace=NAMESPACE, logging_level=logging.WARNING)
    remote: Any = ray.remote(Supervisor)
    actor = remote.options(
        name=run.run_id,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        runtime_env=worker_env(spec),
    ).remote(str(run.path))
    pid = ray.get(actor.ensure.remote(), timeout=ENSURE_S)
    print(f"supervisor of {run.run_id} is pid {pid}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
