"""`python -m orchestrator.supervisor.lastword <run dir> <why>`: the end of a run that no supervisor can be started for.

Where no Python here can run Ray for a run, or orch's own files for it are gone, somebody has to say so in its status
and events, which only a supervisor writes. So the keeper starts this one: it needs no Ray and nothing but the standard
library, holds the run's `supervisor.lock` for a moment, says how the run ended, answers its requests and goes. It
starts nothing and ends nothing: with a process of the run alive it leaves all as it is, and is started again later.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from orchestrator.supervisor import inbox
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.lock import take_lock
from orchestrator.supervisor.observe import Figures, PodEye
from orchestrator.supervisor.outcome import Ended, judge
from orchestrator.supervisor.picture import picture, reason_of
from orchestrator.supervisor.rules import words_of
from orchestrator.supervisor.seen import RankPhase, RankSeen
from orchestrator.supervisor.spec import RunSpec, parse_spec
from pods.remote.left import left_of
from workloads.contract.errors import OrchError
from workloads.contract.files import read_json
from workloads.contract.haltfile import Halt, read_halt
from workloads.contract.process import ProcId
from workloads.contract.records import NO_SUPERVISOR
from workloads.contract.rundir import RunDir, run_name_of
from workloads.contract.states import RunState

LOCK_WAIT_S = 2.0
STARTED = frozenset({RunState.STARTING, RunState.RUNNING, RunState.HALTING})
OVER = frozenset({RankPhase.ENDED, RankPhase.ABSENT})
LIVES = 3


def main(argv: list[str]) -> int:
    """0: it was said; 1: another supervisor lives, or run.json cannot be read; 3: something of the run lives."""
    if len(argv) != 3:
        print("usage: python -m orchestrator.supervisor.lastword <run dir> <why>", file=sys.stderr)
        return 2
    run = RunDir(Path(argv[1]).absolute())
    os.umask(0o077)
    try:
        run_name_of(run.run_id)
        spec = parse_spec(read_json(run.run_json))
        lock = take_lock(run.supervisor_lock, LOCK_WAIT_S)
    except (OSError, ValueError, OrchError) as e:
        print(f"{run.path}: {e}", file=sys.stderr)
        return 1
    try:
        return 0 if say_last_word(spec, run, argv[2]) else LIVES
    finally:
        os.close(lock)


def say_last_word(spec: RunSpec, run: RunDir, why: str) -> bool:
    """Bring the run to its end in status, events and answers. False: something of it lives, and nothing was written."""
    journal = Journal(run)
    journal.load()
    memory = journal.memory
    eye = PodEye(run, spec.pods[0].name, spec.pods[0].ranks)
    ranks = eye.look(memory.attempt) if memory.attempt else []
    if left_of(run) or any(r.phase not in OVER for r in ranks):
        return False
    if memory.state is None:
        journal.event("state", "submitted", to=RunState.QUEUED.value)
    said = f"{NO_SUPERVISOR}: {why}"
    if not memory.ended:
        to, reason = _end(journal, run, ranks, said)
        journal.event("state", reason, to=to.value)
    _write_status(spec, journal, ranks, eye.figures())
    _answer(run, journal, said)
    return journal.flush()


def _end(journal: Journal, run: RunDir, ranks: list[RankSeen], said: str) -> tuple[RunState, str]:
    """How the run ended, and why."""
    memory = journal.memory
    halt = memory.halt or _halt(run)
    if memory.state not in STARTED or not ranks:
        return (RunState.HALTED, f"{halt} (while {memory.state})") if halt else (RunState.FAILED, said)
    outcome = judge(ranks, halt=halt)
    if outcome.how in (Ended.SUCCEEDED, Ended.HALTED):
        return RunState(outcome.how.value), outcome.why
    return RunState.FAILED, f"{outcome.why}; {said}"


def _halt(run: RunDir) -> str | None:
    """Who asked for a halt and why: by `.HALT`, or by a request whose writer did not get further."""
    found = read_halt(run)
    if isinstance(found, Halt):
        return words_of(found.who, found.why)
    asked = [r for r in inbox.pending(run, time.time()) if r.verb == "halt" and not r.problem]
    return words_of(asked[0].who, asked[0].why) if asked else None


def _write_status(spec: RunSpec, journal: Journal, ranks: list[RankSeen], figures: Figures) -> None:
    memory = journal.memory
    status = picture(spec, memory, ranks, figures, reason=reason_of(memory), behind=(), ts=time.time(), me=ProcId.me())
    journal.status(status, time.monotonic())


def _answer(run: RunDir, journal: Journal, said: str) -> None:
    """After the status: a keeper takes an ended run whose requests are answered for a quiet one."""
    state = journal.memory.state
    for request in inbox.pending(run, time.time()):
        if request.problem:
            inbox.answer(run, request, False, request.problem, {})
        elif request.verb == "halt":
            inbox.answer(run, request, state == RunState.HALTED, f"it is {state}", {})
        else:
            inbox.answer(run, request, False, said, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv))
