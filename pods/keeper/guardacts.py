"""What a guard does to a run: its stacks dumped, `.HALT`, the end of ranks. Each bounded. Used by `guard` alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time

from pods.keeper.dumping import WATCHDOG, carry_out_dump
from pods.keeper.guarded import RankHere, processes_of
from workloads.contract.files import atomic_write, atomic_write_json, dump_json
from workloads.contract.health import Rule, anomaly_of
from workloads.contract.records import Ack, Request, as_wire
from workloads.contract.rundir import RunDir


def dump_within(run: RunDir, why: str, timeout_s: float) -> str:
    """Stacks of all ranks on this pod, answered like a request so that every reader of dumps finds them; one sentence.

    The answer is written before the request: nobody is to carry it out a second time.
    """
    request = Request(verb="dump", who=WATCHDOG, ts=time.time(), why=why[:200])
    answers: list[Ack] = []

    def work() -> None:
        try:
            answers.append(carry_out_dump(run, as_wire(request)))
        except Exception as e:  # whatever went wrong with a dump, the guard goes on and says so
            answers.append(Ack(False, "keeper", time.time(), f"{type(e).__name__}: {e}"))

    thread = threading.Thread(target=work, daemon=True, name="guard-dump")
    thread.start()
    thread.join(timeout_s)
    if not answers:
        return f"the stacks were not there within {timeout_s:.0f} s"
    path = run.request("dump", secrets.token_hex(4))
    with contextlib.suppress(OSError):  # a full disk: the guard goes on
        atomic_write_json(RunDir.ack_of(path), as_wire(answers[0]))
        atomic_write_json(path, as_wire(request))
    if not answers[0].ok:
        return f"no stacks: {answers[0].why}"
    return f"stacks: {answers[0].data.get('summary')}"


def halt(run: RunDir, rule: Rule, why: str) -> None:
    """`.anomaly_type`, then `.HALT`; one that is there already is left alone. OSError when it cannot be written.

    On a full disk `.HALT` is an empty file, which counts like any other.
    """
    if run.halt.exists():
        return
    with contextlib.suppress(OSError):
        atomic_write(run.anomaly_type, anomaly_of(rule).encode() + b"\n")
    row = {"who": WATCHDOG, "why": why, "now": False, "ts": time.time()}
    with contextlib.suppress(FileExistsError):
        fd = os.open(run.halt, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with contextlib.suppress(OSError), os.fdopen(fd, "wb") as f:
            f.write(dump_json(row))


def kill(run: RunDir, ranks: list[RankHere]) -> None:
    """End these ranks and whatever carries their mark, each by its identity."""
    for ident in processes_of(run, ranks):
        ident.signal(signal.SIGKILL)
