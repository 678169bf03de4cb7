"""The Supervisor actor: one process a run, named after it, detached, started again by Ray when it is killed.

It holds `supervisor.lock`, runs the engine in a thread twice a second, and goes when the run has ended. Created by
`python -m orchestrator.supervisor`. It imports neither the CLI nor SSH, and never touches a rank itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from orchestrator.supervisor.engine import Engine
from orchestrator.supervisor.gang import RayGang
from orchestrator.supervisor.journal import Journal, submission
from orchestrator.supervisor.leftovers import sweep_leftovers
from orchestrator.supervisor.lock import take_lock
from orchestrator.supervisor.spec import parse_spec
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome, RunDir

log = logging.getLogger(__name__)

TICK_S = 0.5
STARTING_TICK_S = 0.1  # a person waits
LOG_BYTES = 2 << 20
GIVE_UP_LEAVING_S = 60.0


class Supervisor:
    def __init__(self, run_dir: str) -> None:
        os.umask(0o077)
        self.run = RunDir(Path(run_dir))
        self._lock = take_lock(self.run.supervisor_lock)
        _log_to(self.run.supervisor_log)
        spec = parse_spec(read_json(self.run.run_json))
        journal = Journal(self.run)
        journal.load()
        n, why = submission(self.run)
        journal.once(f"submission:{n}", f"supervisor started: {why or 'by hand'}", n=n, pid=os.getpid())
        if journal.memory.state is None:
            journal.event("stage", data={"stage": "supervisor", "seconds": _age_s(spec.created)}, attempt=1)
        spec_now = spec.resumed(journal.memory)
        self.engine = Engine(spec, self.run, RayGang(spec_now, self.run), journal)
        self._thread = threading.Thread(target=self._care, name="care", daemon=True)
        self._thread.start()
        log.info("supervisor %d of %s, state %s", os.getpid(), spec.run_id, journal.memory.state)

    def ensure(self) -> int:
        """The pid, when it works."""
        if not self._thread.is_alive():
            raise RuntimeError("the supervisor's loop has ended")
        return os.getpid()

    def _care(self) -> None:
        threading.Thread(target=self._sweep_leftovers, name="leftovers", daemon=True).start()
        while True:
            began = time.monotonic()
            try:
                if self.engine.tick(began):
                    break
            except Exception:  # a run is not lost because one look failed; the next starts from the files
                log.exception("a look failed")
            tick_s = STARTING_TICK_S if self.engine.starting else TICK_S
            time.sleep(max(tick_s - (time.monotonic() - began), 0.05))
        self._leave()

    def _sweep_leftovers(self) -> None:
        try:
            sweep_leftovers(OrchHome(self.engine.base.home), self.run.run_id)
        except Exception:  # Ray may fail in any way; leftovers wait for the next supervisor
            log.exception("leftovers could not be swept")

    def _leave(self) -> None:
        """End this actor for good. The lock goes with the process."""
        import ray

        log.info("the run has ended; leaving")
        killer = threading.Thread(target=_kill_me, args=(ray.get_runtime_context().current_actor,), daemon=True)
        killer.start()
        killer.join(GIVE_UP_LEAVING_S)
        os._exit(0)  # Ray did not do it: it will start us again, and we will find an ended run


def _age_s(created: float) -> float:
    """Seconds from the launch until now, by this machine's clock."""
    return round(max(time.time() - created, 0.0), 3)


def _kill_me(handle: Any) -> None:
    import ray

    try:
        ray.kill(handle, no_restart=True)
    except Exception:  # the caller ends the process in any case
        log.exception("Ray could not be told")
    time.sleep(GIVE_UP_LEAVING_S)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("orchestrator")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
