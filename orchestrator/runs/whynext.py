"""The one command to type now, and what it does: for every way in which a run can stand. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from orchestrator.runs.render import program
from orchestrator.runs.views import FORGOTTEN, RunView
from orchestrator.runs.whysick import STALLS, Suspect, dump_of
from orchestrator.runs.whywork import Work
from pods.remote.relaunch import relaunch
from workloads.contract.exitcodes import RankExit
from workloads.contract.health import Rule
from workloads.contract.records import NO_SUPERVISOR, PYTHON_GONE, Event
from workloads.contract.states import RunState

NOTHING = ""
Next = tuple[str, str]
_JUDGED = frozenset({"parity", "bench", "decode", "data"})
_OF_GPUS = frozenset({Rule.GPU_MISSING, Rule.XID, Rule.ECC})
_BY_FIGURES = frozenset({Rule.NAN, Rule.LOSS_SPIKE, Rule.GRAD_ZERO, Rule.GATE_COLLAPSE, Rule.ZERO_THROUGHPUT})


def next_of(view: RunView, suspect: Suspect | None, level: str, events: Sequence[Event], work: Work | None) -> Next:
    run, orch = view.run.run_id, program()
    sight = view.sight
    if sight is not None and sight.reachable is False:
        if sight.trouble == FORGOTTEN:
            return f"{orch} pods add {sight.pod} user@host[:port]", "have the pod in the inventory again"
        return f"{orch} pods check {sight.pod}", "see what keeps it from answering; the run needs nothing"
    if sight is not None and (sight.missing or sight.reachable is None):
        return f"{orch} why {run}", "ask the pod"
    if view.ended:
        return _of_ended(view, suspect, orch, work)
    if not view.supervised and view.state != RunState.QUEUED:
        return f"{orch} why {run}", "look again: this one had the keeper woken, and the supervisor comes back by itself"
    if level == "sick" and suspect is not None:
        return _of_sick(view, suspect, orch, events)
    if view.state == RunState.QUEUED and view.status is not None and view.status.behind:
        return NOTHING, f"it starts by itself when {', '.join(view.status.behind)} has ended"
    return NOTHING, "it goes on by itself"


def _of_ended(view: RunView, suspect: Suspect | None, orch: str, work: Work | None) -> Next:
    run, kind = view.run.run_id, str(view.info.get("kind"))
    if view.state == RunState.SUCCEEDED:
        if kind in _JUDGED:
            return f"{orch} {kind} --run {run}", "its answer"
        if view.sight is None:
            return NOTHING, "it lies on this machine"
        return f"{orch} pull {run}", "have it here: logs, records and the newest checkpoint"
    resume = f"{orch} resume {run}"
    if work is not None and work.refused:
        return _list_checkpoints(view, orch), f"mend one from a copy; until one verifies {resume} is refused"
    if view.state == RunState.HALTED and suspect is not None and suspect.rule in _BY_FIGURES:
        rank = "" if suspect.rank is None else f" --rank {suspect.rank}"
        return f"{orch} logs {run}{rank}", f"a resume alone may come to the same; once that is mended: {resume}"
    if view.state == RunState.HALTED and suspect is not None and suspect.rule in _OF_GPUS:
        on = "nvidia-smi" if view.sight is None else f"{orch} pods exec {view.sight.pod} -- nvidia-smi"
        return on, f"see what the driver says of the GPU; once there are enough that are well: {resume}"
    if view.state == RunState.HALTED:
        return resume, _from(view, work)
    if view.reason.startswith((PYTHON_GONE, NO_SUPERVISOR)):
        if view.sight is not None:
            return relaunch(view.info, orch), f"make its environment anew; then {resume}"
        return f"{resume} --code current", "go on with this orch and its Python"
    if kind in _JUDGED and suspect is None:
        return f"{orch} {kind} --run {run}", "what was wrong"
    if suspect is None or suspect.rank is None:
        return resume, "once the reason is gone"
    logs = f"{orch} logs {run} --rank {suspect.rank}"
    if _again_the_same(suspect, view):
        return logs, f"see why; once that is mended: {resume}"
    return resume, _from(view, work)


def _list_checkpoints(view: RunView, orch: str) -> str:
    if view.sight is None:
        return f"ls -l {shlex.quote(str(view.run.checkpoints))}"
    # without `POD:`; what begins at the home there is relative to it: no shell on the pod reads these words
    there = view.sight.path.removeprefix(f"{view.sight.pod}:").removeprefix("~/")
    return f"{orch} pods exec {view.sight.pod} -- ls -l {shlex.quote(f'{there}/{view.run.checkpoints.name}')}"


def _from(view: RunView, work: Work | None) -> str:
    if view.info.get("kind") == "command":
        return "start its command again; where it begins is the program's own affair"
    if work is None or work.checkpoint is None:
        return "start again: there is no checkpoint"
    return f"go on from the checkpoint of step {work.checkpoint}"


def _again_the_same(suspect: Suspect, view: RunView) -> bool:
    """A resume alone would end in the same way: the program's own error, a refusal, restarts that brought nothing."""
    facts = suspect.exit or {}
    own = facts.get("exit_code") not in (None, 0, RankExit.CHECKPOINTED)
    return own or facts.get("oom") is True or "brought no new step" in view.reason


def _of_sick(view: RunView, suspect: Suspect, orch: str, events: Sequence[Event]) -> Next:
    run = view.run.run_id
    rank = "" if suspect.rank is None else f" --rank {suspect.rank}"
    rule = suspect.rule
    if suspect.exit is not None:
        return NOTHING, "orch ends the other ranks and restarts"
    if rule in (Rule.DISK_LOW, Rule.SHM_LOW):
        on = "df -h" if view.sight is None else f"{orch} pods exec {view.sight.pod} -- df -h"
        return on, "see what fills it, and free some space; the run goes on"
    if rule in _OF_GPUS:
        on = "nvidia-smi" if view.sight is None else f"{orch} pods exec {view.sight.pod} -- nvidia-smi"
        return on, "see what the driver says of the GPU"
    if rule == Rule.STOPPED or _is_frozen(view, suspect):
        return _wake(view, suspect, orch)
    if rule in _BY_FIGURES:
        return f"{orch} logs {run}{rank}", "see the steps before; orch halt stops it with a checkpoint"
    if rule is None or rule in STALLS or rule in (Rule.DATA_STALL, Rule.STUCK, Rule.SLOW):
        if dump_of(events, suspect.attempt, suspect.ts) is None:
            return f"{orch} dump {run}", "see where every rank is"
        if suspect.suppressed:
            return f"{orch} halt {run}", "stop it: the stacks are on disk, and orch itself does nothing more"
        return NOTHING, "the stacks are on disk; orch goes on by the ladder of the rule"
    return NOTHING, "it goes on by itself"


def _is_frozen(view: RunView, suspect: Suspect) -> bool:
    return suspect.rule is None and "state T" in suspect.why and _pid(view, suspect) is not None


def _wake(view: RunView, suspect: Suspect, orch: str) -> Next:
    pid = _pid(view, suspect)
    if pid is None:
        return f"{orch} status {view.run.run_id}", "see the rank"
    kill = f"kill -CONT {pid}"
    return kill if view.sight is None else f"{orch} pods exec {view.sight.pod} -- {kill}", "let the rank go on"


def _pid(view: RunView, suspect: Suspect) -> int | None:
    return next((r.record.pid for r in view.ranks if r.rank == suspect.rank and r.record is not None), None)
