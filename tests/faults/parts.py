"""Cells of faults that strike orch's own processes: shim, supervisor, keeper. Ranks must not notice where they can."""

from __future__ import annotations

import signal
import time
from itertools import count

from tests.faults.book import cells
from tests.faults.ranks import STRUCK, fallen, says
from tests.faults.staff import stopped
from tests.faults.stand import Stand
from tests.faults.words import IN_ATTEMPT, Fault, When
from workloads.contract.process import ProcId

RUNNING = (When.STARTING, When.TRAINING, When.CHECKPOINTING, When.HALTING)


@cells(Fault.SHIM_KILLED, *RUNNING, When.RESUMING)
def shim_killed(stand: Stand, when: When) -> None:
    """The rank goes with its shim; the keeper finishes the record, and the run goes on."""
    attempt = stand.bring_to(when)
    rank = stand.rank(STRUCK, attempt)
    assert stand.shim(STRUCK, attempt).signal(signal.SIGKILL)
    stand.until(lambda: not rank.alive(), "the rank's end")
    stand.control.release()
    if when is When.HALTING:
        says(stand.until_state("halted")["reason"], f"rank {STRUCK} was lost with its shim")
    else:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
        says(fallen(stand, attempt), f"rank {STRUCK} was lost with its shim")
    stand.bring_back()


@cells(Fault.SHIM_STOPPED, When.TRAINING, When.HALTING)
def shim_stopped(stand: Stand, when: When) -> None:
    """A shim in state T reaps nothing and sends nothing: it is woken, and its rank's end is told."""
    attempt = stand.bring_to(when)
    rank, shim = stand.rank(STRUCK, attempt), stand.shim(STRUCK, attempt)
    assert shim.signal(signal.SIGSTOP)
    if when is When.TRAINING:
        assert rank.signal(signal.SIGKILL)
    stand.control.release()
    if when is When.TRAINING:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
        says(fallen(stand, attempt), f"rank {STRUCK}", "killed by signal 9")
    else:
        stand.until_state("halted")
    assert not shim.alive()
    stand.bring_back()


@cells(Fault.SUPERVISOR_KILLED, When.QUEUED, *IN_ATTEMPT, When.BETWEEN)
def supervisor_killed(stand: Stand, when: When) -> None:
    """The one that comes after it finds the ranks again by their records; no attempt is spent."""
    if when is When.QUEUED:
        from orchestrator.supervisor.seen import GangSeen, GangState

        stand.ways.seen = GangSeen(GangState.PENDING, "no CPU is free; behind x", ("x",))
        stand.launch()
        stand.until(lambda: stand.status.get("behind") == ["x"], "queued behind x")
        stand.ways.seen = None
        attempt, ranks = 1, []
    else:
        attempt = stand.bring_to(when)
        ranks = [] if when is When.BETWEEN else [stand.rank(r, attempt) for r in range(stand.world)]
    before = stand.supervisor.pid
    stand.supervisor.kill()
    stand.until(
        lambda: stand.status.get("supervisor", {}).get("pid") not in (None, before), "a new supervisor's status"
    )
    assert all(r.alive() for r in ranks)
    stand.control.release()
    ended = "halted" if when is When.HALTING else "succeeded"
    stand.until_state(ended)
    assert stand.attempt == attempt + (when is When.BETWEEN), stand.attempt
    stand.bring_back()


@cells(Fault.SUPERVISOR_DIES_AGAIN, When.WHOLE)
def supervisor_dies_again(stand: Stand, when: When) -> None:
    """It dies before its 4th file operation, the next one before its 5th, and so on, through a start, a restart, a halt
    and a resume: between any two things that it does there is a death."""
    stand.ways.die_at = count(4)
    stand.launch(restart={"max": 30, "backoff_s": [0.0]})
    stand.after_commit()
    stand.rank(STRUCK).signal(signal.SIGKILL)
    stand.until(lambda: stand.attempt == 2, "attempt 2")
    stand.until(lambda: stand.step(2) > 0, "a step of attempt 2")
    stand.control.release()
    stand.halt()
    stand.until_state("halted")
    stand.bring_back()
    assert next(stand.ways.die_at) > 8, "it hardly ever died"
    stand.ways.die_at = None


@cells(Fault.SUPERVISOR_STOPPED, When.TRAINING, When.CHECKPOINTING, When.HALTING)
def supervisor_stopped(stand: Stand, when: When) -> None:
    """Asleep for longer than any limit of health, it takes nobody else's silence for a stall when it wakes."""
    stand.steps, stand.step_s = 400, 0.02
    stand.health = {"rules": {
        "no_step": {"limit": 3, "act_limit": 4}, "no_beat": {"limit": 3, "act_limit": 4},
        "phase_over": {"limits": {"checkpointing": 3, "starting": 3, "loading": 3}, "act_factor": 1},
    }}  # fmt: skip
    attempt = stand.bring_to(when)
    ranks = [stand.rank(r, attempt) for r in range(stand.world)]
    with stopped(ProcId.of(stand.supervisor.pid)):  # type: ignore[arg-type]
        stand.control.release()
        time.sleep(6)
        if when is not When.HALTING:
            assert all(r.alive() for r in ranks)
    stand.until_state("halted" if when is When.HALTING else "succeeded")
    assert stand.attempt == attempt and not [e for e in stand.events("health") if e["data"]["rung"] != "note"]
    stand.bring_back()


@cells(Fault.KEEPER_KILLED, When.TRAINING, When.HALTING)
def keeper_killed(stand: Stand, when: When) -> None:
    """While it is gone a shim is lost: nobody tells of it, and nothing is done about it until the keeper is back."""
    attempt = stand.bring_to(when)
    stand.keeper.kill()
    rank = stand.rank(STRUCK, attempt)
    assert stand.shim(STRUCK, attempt).signal(signal.SIGKILL)
    stand.until(lambda: not rank.alive(), "the rank's end")
    time.sleep(1)
    assert stand.attempt == attempt and stand.state not in ("failed", "halted")
    stand.control.release()
    stand.keeper.start()
    if when is When.HALTING:
        stand.until_state("halted")
    else:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
        says(fallen(stand, attempt), f"rank {STRUCK} was lost with its shim")
    stand.bring_back()
