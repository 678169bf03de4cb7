"""What the supervisor does next: a pure function of what it saw. Reads, writes and waits for nothing.

Promises, tested on random histories: transitions only along `states.TRANSITIONS` and at most one a call; an ended run
moves only by a resume request; no attempt starts while a rank or stray process of an older one lives or could not be
looked for; nothing is stopped because something could not be seen; with `.HALT` nothing is ever restarted, whatever
the rules of health say.

States before a start and after the end are here, those in between in `rules`, findings of health in `treat`.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.supervisor.actions import (
    Action,
    Answer,
    LatchHalt,
    Leave,
    Place,
    Prepare,
    Resume,
    Start,
    Sweep,
    Tell,
    Transition,
    WriteHalt,
)
from orchestrator.supervisor.rules import (
    LEASE_RETRY_S,
    STRAYS_LIMIT_S,
    attempt,
    gang_upkeep,
    halt_words,
    halting,
    over,
)
from orchestrator.supervisor.seen import GangState, RequestSeen, Seen
from orchestrator.supervisor.treat import told
from workloads.contract.states import RESUMABLE, RunState

HELD = " are held by "  # of a sentence about memory; a lease says the holder alone
LIVING = frozenset({RunState.STARTING, RunState.RUNNING, RunState.HALTING})


def decide(s: Seen) -> list[Action]:
    """Actions in order. The caller carries them out and looks again."""
    state = s.memory.state
    if state is None:
        return [Transition(RunState.QUEUED, "submitted")]
    if s.memory.ended:
        return _ended(s)
    actions = _requests(s)
    if s.halt and s.memory.halt is None:
        actions.append(LatchHalt(s.halt))
    if state in LIVING:
        actions += told(s)
    return actions + _BY_STATE[state](s)


def _requests(s: Seen) -> list[Action]:
    actions: list[Action] = []
    for request in s.requests:
        if request.problem:
            actions.append(Answer(request, False, request.problem))
        elif request.verb == "halt" and s.halt is None and s.memory.halt is None:
            actions.append(WriteHalt(request))
        elif request.verb == "resume" and request.name == s.memory.resumed_by:
            actions.append(Answer(request, True, "resumed"))
        elif request.verb == "resume":
            actions.append(Answer(request, False, f"it is {s.memory.state}; only a halted or failed run is resumed"))
    return actions


def _ended(s: Seen) -> list[Action]:
    actions: list[Action] = []
    chosen: RequestSeen | None = None
    for request in s.requests:
        if request.problem:
            actions.append(Answer(request, False, request.problem))
        elif request.verb == "halt":
            actions.append(Answer(request, s.memory.state == RunState.HALTED, f"it is {s.memory.state}"))
        elif request.verb == "resume" and s.memory.state not in RESUMABLE:
            actions.append(Answer(request, False, f"it has {s.memory.state}: there is nothing to resume"))
        elif request.verb == "resume" and chosen is None:
            chosen = request
    return [*actions, Resume(chosen) if chosen else Leave()]


def _queued(s: Seen) -> list[Action]:
    if halt := halt_words(s):
        return _halted_before_start(s, halt)
    match s.gang.state:
        case GangState.NONE:
            return [Place()]
        case GangState.IMPOSSIBLE:
            return [Transition(RunState.FAILED, s.gang.reason)]
        case GangState.PENDING:
            return [Tell(s.gang.reason, s.gang.behind)]
        case GangState.UNKNOWN:
            return [Tell("Ray does not answer; asking again")]
        case GangState.PLACED | GangState.READY:
            if s.busy:
                return [_tell_busy(s.busy)]
            return [Transition(RunState.PREPARING, "placed")] if s.in_state_s >= s.memory.backoff_s else []


def _tell_busy(busy: Mapping[str, str] | str) -> Tell:
    if isinstance(busy, str):
        return Tell(f"the devices cannot be looked at: {busy}; looking again every {LEASE_RETRY_S:.0f} s")
    held = ", ".join(_in_use(device, holder) for device, holder in sorted(busy.items()))
    words = f"a device is in use outside this run: {held}; looking again every {LEASE_RETRY_S:.0f} s"
    return Tell(words, tuple(sorted({holder for holder in busy.values() if HELD not in holder})))


def _in_use(device: str, holder: str) -> str:
    """`GPU-1 by <run>`, or `GPU-1: 115 GiB of 141 are held by pid 4242 (..)`."""
    return f"{device}: {holder}" if HELD in holder else f"{device} by {holder}"


def _halted_before_start(s: Seen, halt: str) -> list[Action]:
    if not all(over(s, r) for r in s.ranks):
        return []
    return [Transition(RunState.HALTED, f"{halt} (while {s.memory.state})")]


def _preparing(s: Seen) -> list[Action]:
    if halt := halt_words(s):
        return _halted_before_start(s, halt)
    if s.gang.state == GangState.NONE:
        return [Transition(RunState.QUEUED, "the placement was lost; placing again")]
    return _start_when_ready(s)


def _start_when_ready(s: Seen) -> list[Action]:
    if s.gang.state == GangState.PLACED:
        return [Prepare()]
    if s.gang.state != GangState.READY:
        return []
    blocked = _before_start(s)
    if blocked is not None:
        return blocked
    if s.busy is None:
        return []
    if isinstance(s.busy, str):
        return [_tell_busy(s.busy)]
    if s.busy:
        return [Transition(RunState.QUEUED, _tell_busy(s.busy).reason)]
    return [Start(s.memory.attempt + 1)]


def _before_start(s: Seen) -> list[Action] | None:
    """None when nothing of an older attempt is left."""
    living = [r for r in s.ranks if not over(s, r)]
    if living and s.in_state_s > STRAYS_LIMIT_S:
        return [Tell(f"rank {living[0].rank} of attempt {s.memory.attempt} has not ended; waiting until it has")]
    if s.strays is None or living:
        return []
    if not s.strays:
        return None
    if s.over_s > STRAYS_LIMIT_S:
        pids = ", ".join(map(str, s.strays))
        return [Transition(RunState.FAILED, f"processes of attempt {s.memory.attempt} could not be ended: pid {pids}")]
    return [Sweep(s.strays)]


def _resuming(s: Seen) -> list[Action]:
    if halt := halt_words(s):
        return _halted_before_start(s, halt)
    if s.in_state_s < s.memory.backoff_s:
        return gang_upkeep(s) if s.gang.state == GangState.PLACED else []
    if s.gang.state in (GangState.NONE, GangState.PENDING, GangState.IMPOSSIBLE):
        return [Transition(RunState.QUEUED, "placing again")]
    return _start_when_ready(s)


_BY_STATE = {
    RunState.QUEUED: _queued,
    RunState.PREPARING: _preparing,
    RunState.STARTING: attempt,
    RunState.RUNNING: attempt,
    RunState.HALTING: halting,
    RunState.RESUMING: _resuming,
}
