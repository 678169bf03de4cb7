"""Cells on the full stack: the real keeper, a real Ray and its actors, everything asked through `orch`, pod `local`.

Each has an $ORCH_HOME of its own. The rank is the one of all other cells, as a command of the user's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.runs import index
from pods.keeper.client import running
from pods.keeper.runs import lock_is_held
from tests.faults.book import cells
from tests.faults.ranks import STRUCK, fallen, says
from tests.faults.staff import Forked
from tests.faults.stand import EVERY, Stand
from tests.faults.words import Fault, When
from tests.local.conftest import ROOT, Orch
from workloads.contract.files import read_json
from workloads.contract.process import ProcId, marked
from workloads.contract.rundir import OrchHome

RAY_STARTS_S = 300.0
"""10 to 35 s on two idle cores."""


class FullStand(Stand):
    """A run that `orch` launched. Supervisor and keeper are Ray's and orch's own to keep alive."""

    orch: Orch

    def launch_full(self) -> None:
        self.auto = False
        plan = {"steps": self.steps, "every": EVERY, "evaluate_every": EVERY // 2, "step_s": self.step_s, "keep": 3}
        told = {"FAULTS_CONTROL": str(self.control.control), "FAULTS_PLAN": json.dumps(plan)}
        start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.faults.rank import main; sys.exit(main())"
        script = ["env", *(f"{k}={v}" for k, v in told.items()), sys.executable, "-c", start]
        sets = ["--set", f"resources.ranks={self.world}", "--set", "restart.backoff_s=[0.5]"]
        out = self.orch("launch", "--name", self.name, *sets, "--json", "--", *script)
        self.run = self.home.run(json.loads(out)["run"])
        self.supervisor = Forked("supervisor", lambda: None, self.run.supervisor_log)  # Ray's; this one never starts
        self.keeper = Forked("keeper", lambda: None, self.home.keeper_log)

    def ray_process(self, word: str) -> ProcId:
        """The one process of this home's Ray cluster whose command line has `word`."""
        cluster = next((self.home.path / "ray").iterdir()).name
        found = [p for p in marked(cluster, "ORCH_CLUSTER") if word in command_of(p)]
        assert len(found) == 1, f"{word}: {found}"
        return found[0]

    def keeper_process(self) -> ProcId | None:
        row = running(self.home)
        return ProcId(row["pid"], row["start_time"], row["boot_id"]) if row else None

    def supervisor_process(self) -> ProcId:
        row = self.status["supervisor"]
        return ProcId(row["pid"], row["start_time"], row["boot_id"])

    def bring_back(self) -> None:
        self.control.release()
        state = self.until_state("succeeded", "halted", "failed", timeout_s=RAY_STARTS_S)["state"]
        if state != "succeeded":
            self.orch("resume", self.run.run_id)
            self.until_state("succeeded", timeout_s=RAY_STARTS_S)
        self.until(lambda: not lock_is_held(self.run.supervisor_lock), "the supervisor left")
        index.list_runs(self.home, lambda text: None)


def command_of(ident: ProcId) -> str:
    try:
        return Path(f"/proc/{ident.pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@contextmanager
def running_run(stand: Stand) -> Iterator[tuple[FullStand, list[ProcId]]]:
    """A run on the full stack, a checkpoint behind it, its ranks waiting."""
    base = Path(f"/tmp/orch-t-{os.getpid()}")
    (base / "work").mkdir(parents=True)
    full = FullStand(OrchHome(base / "home"), "full", steps=160, step_s=0.02)
    full.orch = Orch(full.home, base / "work")
    stand.at_end += [full.orch.close, lambda: shutil.rmtree(base, ignore_errors=True)]
    full.launch_full()
    full.after_commit(RAY_STARTS_S)
    stand.instead = full
    yield full, [full.rank(r, 1) for r in range(full.world)]


def unnoticed(stand: Stand, strike: Callable[[FullStand], None], repaired: Callable[[FullStand], bool]) -> None:
    """Whatever of orch is killed, the ranks go on with the same pids, in the same attempt; orch comes back."""
    with running_run(stand) as (full, ranks):
        strike(full)
        full.until(lambda: repaired(full), "the repair", RAY_STARTS_S)
        assert all(r.alive() for r in ranks), full.story()
        full.control.release()
        full.until_state("succeeded", timeout_s=RAY_STARTS_S)
        assert full.attempt == 1
        full.bring_back()


def supervised(full: FullStand, before: ProcId) -> bool:
    return lock_is_held(full.run.supervisor_lock) and full.supervisor_process() != before


@cells(Fault.SUPERVISOR_KILLED, When.RAY, full=True)
def supervisor_killed(stand: Stand, when: When) -> None:
    seen: list[ProcId] = []

    def strike(full: FullStand) -> None:
        seen.append(full.supervisor_process())
        assert seen[0].signal(signal.SIGKILL)

    unnoticed(stand, strike, lambda full: supervised(full, seen[0]))


@cells(Fault.AGENT_KILLED, When.TRAINING, full=True)
def agent_killed(stand: Stand, when: When) -> None:
    seen: list[ProcId] = []

    def strike(full: FullStand) -> None:
        seen.append(full.ray_process("PodAgent"))
        assert seen[0].signal(signal.SIGKILL)

    unnoticed(stand, strike, lambda full: not seen[0].alive())


def ray_dies(stand: Stand, word: str) -> None:
    seen: list[ProcId] = []

    def strike(full: FullStand) -> None:
        seen.append(full.supervisor_process())
        assert full.ray_process(word).signal(signal.SIGKILL)

    unnoticed(stand, strike, lambda full: not seen[0].alive() and supervised(full, seen[0]))


@cells(Fault.RAYLET_KILLED, When.TRAINING, full=True)
def raylet_killed(stand: Stand, when: When) -> None:
    ray_dies(stand, "raylet/raylet")


@cells(Fault.GCS_KILLED, When.TRAINING, full=True)
def gcs_killed(stand: Stand, when: When) -> None:
    ray_dies(stand, "gcs_server")


@cells(Fault.KEEPER_KILLED, When.RAY, full=True)
def keeper_killed(stand: Stand, when: When) -> None:
    seen: list[ProcId] = []

    def strike(full: FullStand) -> None:
        before = full.keeper_process()
        assert before is not None and before.signal(signal.SIGKILL)
        seen.append(before)

    unnoticed(stand, strike, lambda full: full.keeper_process() not in (None, seen[0]))


@cells(Fault.ALL_OF_ORCH_KILLED, When.TRAINING, full=True)
def all_of_orch_killed(stand: Stand, when: When) -> None:
    """Nothing of orch is left but the ranks and their shims; the next command of anybody brings the rest back."""

    def strike(full: FullStand) -> None:
        kill_orch(full)
        full.orch("resume", full.run.run_id, code=6)  # it runs: nothing to resume, but the keeper is started

    unnoticed(stand, strike, lambda full: lock_is_held(full.run.supervisor_lock))


def kill_orch(full: FullStand) -> None:
    keeper = full.keeper_process()
    assert keeper is not None and keeper.signal(signal.SIGKILL)
    cluster = next((full.home.path / "ray").iterdir()).name
    for ident in marked(cluster, "ORCH_CLUSTER"):
        ident.signal(signal.SIGKILL)


@cells(Fault.ALL_OF_ORCH_KILLED, When.HALTING, full=True)
def halted_without_orch(stand: Stand, when: When) -> None:
    """`.HALT` needs nobody: the ranks stop at one step with a checkpoint; the state follows at the next contact."""
    with running_run(stand) as (full, ranks):
        kill_orch(full)
        full.run.halt.touch()
        full.until(lambda: not any(r.alive() for r in ranks), "the ranks' end")
        acks = [read_json(full.run.halt_ack(r)) for r in range(full.world)]
        assert acks[0]["step"] == acks[1]["step"] and acks[0]["checkpoint"], acks
        full.orch("status", full.run.run_id)
        full.orch("resume", full.run.run_id, code=6)
        full.until_state("halted", timeout_s=RAY_STARTS_S)
        full.bring_back()


@cells(Fault.RANK_KILLED, When.RAY, full=True)
def rank_killed(stand: Stand, when: When) -> None:
    restarted(stand, lambda full: full.rank(STRUCK, 1), "killed by signal 9")


@cells(Fault.SHIM_KILLED, When.RAY, full=True)
def shim_killed(stand: Stand, when: When) -> None:
    restarted(stand, lambda full: full.shim(STRUCK, 1), "was lost with its shim")


def restarted(stand: Stand, who: Callable[[FullStand], ProcId], words: str) -> None:
    with running_run(stand) as (full, _):
        assert who(full).signal(signal.SIGKILL)
        began = time.monotonic()
        full.until(lambda: full.events("rank-exit"), "the death in the events")
        assert time.monotonic() - began < 30
        full.control.release()
        full.until(lambda: full.attempt == 2, "the next attempt", RAY_STARTS_S)
        says(fallen(full, 1), f"rank {STRUCK}", words)
        full.bring_back()
