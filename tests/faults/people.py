"""Cells of what people do: a halt at every moment, one that cannot wait, a resume twice, `.HALT` in every shape."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from orchestrator.supervisor.seen import GangSeen, GangState
from tests.faults.book import cells
from tests.faults.ranks import STRUCK, says
from tests.faults.stand import Stand
from tests.faults.words import BEFORE_A_STEP, Fault, When
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir


def queue(stand: Stand) -> None:
    """Launch it behind another run; `stand.ways.seen = None` and a new supervisor let it through."""
    stand.ways.seen = GangSeen(GangState.PENDING, "no CPU is free; behind x", ("x",))
    stand.launch()
    stand.until(lambda: stand.status.get("behind") == ["x"], "queued behind x")


def acknowledged(stand: Stand) -> None:
    """Every rank stopped at the same step and named the same checkpoint by its hash."""
    acks = [read_json(stand.run.halt_ack(r)) for r in range(stand.world)]
    assert {a["attempt"] for a in acks} == {stand.attempt}, acks
    assert len({(a["step"], a["checkpoint"], a["hash"]) for a in acks}) == 1, acks
    assert stand.run.manifest(stand.run.checkpoints / acks[0]["checkpoint"]).is_file(), acks


@cells(Fault.HALT, When.QUEUED, *BEFORE_A_STEP, When.TRAINING, When.CHECKPOINTING, When.EVALUATING, When.RESUMING,
       When.BETWEEN)  # fmt: skip
def halt(stand: Stand, when: When) -> None:
    if when is When.QUEUED:
        queue(stand)
    else:
        stand.bring_to(when)
    ask = stand.ask("halt", why="enough")
    if when in (When.QUEUED, When.BETWEEN):
        says(stand.until_state("halted")["reason"], "halted by test: enough")
        stand.ways.seen = None
    else:
        stand.until_state("halting")
        stand.control.release()
        says(stand.until_state("halted")["reason"], "halted by test: enough")
        acknowledged(stand)
    stand.until(lambda: RunDir.ack_of(ask).exists(), "the request's answer")
    assert read_json(RunDir.ack_of(ask))["ok"] is True
    stand.bring_back()


@cells(Fault.HALT_NOW, When.TRAINING)
def halt_now(stand: Stand, when: When) -> None:
    """A rank that hears nothing: SIGTERM after 10 s, SIGKILL after 30, and the halt is told as one."""
    stand.bring_to(when)
    stand.control.do(STRUCK, "hold_gil")
    stand.until(lambda: not (stand.control.control / f"do_r{STRUCK}").exists(), "the hang")
    stand.ask("halt", why="at once", args={"now": True})
    stand.control.release()
    says(stand.until_state("halted")["reason"], "halted by test: at once")
    stand.bring_back()


@cells(Fault.RESUME_TWICE, When.ENDED, When.TRAINING)
def resume_twice(stand: Stand, when: When) -> None:
    stand.bring_to(When.TRAINING)
    if when is When.ENDED:
        stand.halt()
        stand.until_state("halted")
        stand.until(lambda: not stand.supervisor.alive(), "the supervisor left")
    asked = [stand.ask("resume", f"two{n}") for n in (1, 2)]
    stand.until(lambda: all(RunDir.ack_of(p).exists() for p in asked), "both answers")
    said = [read_json(RunDir.ack_of(p)) for p in asked]
    assert [a["ok"] for a in said] == [when is When.ENDED, False], said
    stand.control.release()
    stand.until_state("succeeded")
    assert stand.attempt == (2 if when is When.ENDED else 1)
    stand.bring_back()


@cells(Fault.HALT_REMOVED, When.LOADING, When.TRAINING, When.HALTING)
def halt_removed(stand: Stand, when: When) -> None:
    """A halt is a latch."""
    stand.bring_to(when)
    if when is not When.HALTING:
        stand.halt()
        stand.until_state("halting")
    stand.run.halt.unlink()
    stand.control.release()
    stand.until_state("halted")
    acknowledged(stand)
    stand.bring_back()


@cells(Fault.HALT_AGAIN, When.TRAINING, When.HALTING)
def halt_again(stand: Stand, when: When) -> None:
    """Removed and made anew with other words: one halt, and its first reason stands."""
    stand.bring_to(when)
    if when is not When.HALTING:
        stand.halt()
        stand.until_state("halting")
    for words in ("other words", "and others"):
        stand.run.halt.unlink(missing_ok=True)
        stand.run.halt.write_text(words)
    stand.control.release()
    says(stand.until_state("halted")["reason"], "halted by a file: enough")
    assert len(stand.events("halt")) == 1
    stand.bring_back()


def not_obeyed(stand: Stand, when: When, make: Callable[[Path], None], words: str) -> None:
    attempt = stand.bring_to(when)
    make(stand.run.halt)
    stand.until(lambda: [e for e in stand.events("note") if words in e["why"]], f"a note that it is {words}")
    stand.control.release()
    stand.until_state("succeeded")
    assert stand.attempt == attempt + (when is When.BETWEEN)
    assert len([e for e in stand.events("note") if words in e["why"]]) == 1
    stand.bring_back()


@cells(Fault.HALT_SYMLINK, When.TRAINING, When.BETWEEN)
def halt_symlink(stand: Stand, when: When) -> None:
    not_obeyed(stand, when, lambda path: path.symlink_to("/etc/hostname"), "a symbolic link")


@cells(Fault.HALT_FIFO, When.TRAINING, When.STARTING)
def halt_fifo(stand: Stand, when: When) -> None:
    not_obeyed(stand, when, os.mkfifo, "a FIFO")
