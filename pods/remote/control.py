"""Asking a run to halt, dump or go on: requests are files in its directory; supervisor or keeper answer beside them.

Nothing here signals a process. It runs where the run lies: in `orch` for a run on this machine, in the pod's own
process (`pods.remote.runs`) for any other.
"""

from __future__ import annotations

import secrets
import shlex
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pods.keeper.client import ensure_keeper
from pods.keeper.runs import pending_requests, run_ids, tree_of
from pods.remote.relaunch import relaunch
from pods.remote.resumable import refuse_named, refuse_unresumable
from workloads.contract.errors import ConflictError, LocalError, escape
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.jobchanges import Changes
from workloads.contract.records import Ack, Request, as_wire
from workloads.contract.rundir import OrchHome, RunDir
from workloads.contract.states import ENDED, RESUMABLE, RunState

MAX_WHY_CHARS = 1000
REWINDS = "orchestrator/supervisor/rewind.py"
"""of an orch whose supervisor sets newer checkpoints aside"""
CHANGES_JOBS = "workloads/contract/jobchanges.py"
"""of an orch whose supervisor changes jobs"""


def halt(run: RunDir, *, now: bool, why: str, who: str) -> Path:
    """Ask for a halt and write `.HALT`. One that is there stays as it is, but a gentle one is made urgent by `now`.

    LocalError when a directory lies where it should be; the request is written then.
    """
    request = _ask(run, "halt", why=why, who=who, args={"now": now})
    if _is_regular(run.halt) and not (now and not _is_urgent(run.halt)):
        return request
    content = {"who": who, "why": why[:MAX_WHY_CHARS], "now": now, "ts": time.time()}
    try:
        atomic_write_json(run.halt, content)
    except IsADirectoryError as e:
        raise LocalError(
            "E-CTL-005", f"{run.halt.name} is a directory, which halts nothing", where=str(run.halt),
            fix=f"rm -r {shlex.quote(str(run.halt))}   (the request is written: the run halts then)",
        ) from e  # fmt: skip
    except OSError as e:
        raise _cannot_write(run.halt, e) from e
    return request


def dump(run: RunDir, *, ranks: Sequence[int] | None, why: str, who: str) -> Path:
    """Ask for the stacks of every rank, or of `ranks`."""
    return _ask(run, "dump", why=why, who=who, args={} if ranks is None else {"ranks": list(ranks)})


def resume(
    run: RunDir, *, who: str, why: str, tree: Path | None = None, allow: Sequence[str] = (),
    checkpoint: str | None = None, changes: Changes | None = None,
) -> Path:  # fmt: skip
    """Ask an ended run to go on. A request nobody has answered yet is returned again when it asks for the same; with
    `tree` one that differs from this in its code alone, or allows less, is refused in favour of this one.

    `tree`: orch's own files to go on with, below `$ORCH_HOME/orch`; None for those it was launched with. `allow`:
    fields of the config in which the checkpoint and the run's job may differ. `checkpoint`: the name of the one to go
    on from; None for the newest that verifies. `changes`: of the run's job. ConflictError for a run that has not ended
    or succeeded, and when a request for anything else waits; LocalError when its code or its Python is
    gone, or the code is too old to be given them; IntegrityError when it has checkpoints and none can be used, or the
    named one cannot; SpecError when that is none.
    """
    waiting = pending_requests(run, "resume")
    if waiting:
        wanted = {"checkpoint": checkpoint, "changes": dict(changes or {}), "tree": tree and str(tree),
                  "allow": sorted(allow)}  # fmt: skip
        asked = _asked_by(waiting[-1])
        if asked == wanted:
            return waiting[-1]
        if tree is None or not _takes_the_place(wanted, asked):
            raise _asked_otherwise(run, waiting[-1], asked, wanted)
    _refuse_state(run)
    args: dict[str, Any] = {"code": "run" if tree is None else "current"}
    if tree is not None:
        args["tree"] = str(tree)
        args |= _todays_python(run)
    else:
        _refuse_lost_code(run)
        _refuse_lost_python(run)
    if allow:
        args["allow"] = list(allow)
    if checkpoint is None:
        refuse_unresumable(run)
    else:
        refuse_named(run, checkpoint)
        _refuse_older_code(run, tree, REWINDS, f"--checkpoint {checkpoint}")
        args["checkpoint"] = checkpoint
    if changes:
        _refuse_older_code(run, tree, CHANGES_JOBS, "--set KEY=VALUE")
        args["changes"] = dict(changes)
    for request in waiting:  # first: with two of them the older one would be carried out
        _replace(request, who)
    return _ask(run, "resume", why=why, who=who, args=args)


def wait_ack(request: Path, *, timeout_s: float, poll_s: float = 0.1) -> Ack | None:
    """The answer, or None when there is none in time."""
    path = RunDir.ack_of(request)
    deadline = time.monotonic() + timeout_s
    while True:
        row = try_read_json(path)
        if row is not None:
            return ack_of(row)
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(poll_s, left))


def wake(home: OrchHome, own: Callable[[], tuple[str, Path]] | None = None, *, replace: bool = False) -> bool:
    """Start the keeper if it is missing and have it look at its runs now. RemoteError when it does not come up.

    It is run by `own()` (interpreter and tree of whoever asks: the newest orch there is); without it by those of the
    newest run here, or not at all where no run can say: False then. `replace`: as `ensure_keeper`.
    """
    found = own() if own else _newest(home)
    if found is None:
        return False
    ensure_keeper(home, *found, replace=replace).poke()
    return True


def _ask(run: RunDir, verb: str, *, why: str, who: str, args: dict[str, Any]) -> Path:
    path = run.request(verb, secrets.token_hex(4))
    request = Request(verb=verb, who=who, ts=time.time(), why=why[:MAX_WHY_CHARS], args=args)
    try:
        run.requests.mkdir(exist_ok=True, mode=0o700)
        atomic_write_json(path, as_wire(request))
    except OSError as e:
        raise _cannot_write(path, e) from e
    return path


def _cannot_write(path: Path, e: OSError) -> LocalError:
    return LocalError(
        "E-CTL-001", f"the request cannot be written: {e.strerror}", where=str(path),
        fix="free some space, or mend the permissions of the run directory",
    )  # fmt: skip


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_urgent(halt_file: Path) -> bool:
    return (try_read_json(halt_file) or {}).get("now") is True


def _refuse_state(run: RunDir) -> None:
    row = try_read_json(run.status) or {}
    state = str(row.get("state", RunState.QUEUED))
    if state in RESUMABLE:
        return
    ident = run.run_id
    if state in ENDED:
        raise ConflictError(
            "E-CTL-002", f"run {ident} has succeeded: there is nothing to resume", where=str(run.path), value=state,
            expected="halted or failed", fix=f"orch launch JOB --resume {ident}   (a new run that begins with its end)",
        )  # fmt: skip
    raise ConflictError(
        "E-CTL-003", f"run {ident} has not ended: it is {state}", where=str(run.path), value=state,
        expected="halted or failed", fix=f"orch status {ident}; orch halt {ident}",
    )  # fmt: skip


def _refuse_lost_code(run: RunDir) -> None:
    tree = (try_read_json(run.run_json) or {}).get("tree")
    if isinstance(tree, str) and not Path(tree).is_dir():
        raise LocalError(
            "E-CTL-004", f"the code that run {run.run_id} was launched with is gone", where=tree,
            fix=f"orch resume {run.run_id} --code current",
        )  # fmt: skip


def _lost_python(run: RunDir) -> tuple[str, dict[str, Any]]:
    """(the interpreter of the ranks that is not there any more, or "", and run.json)"""
    row = try_read_json(run.run_json) or {}
    pods, argv = row.get("pods"), row.get("argv")
    first = pods[0] if isinstance(pods, list) and pods and isinstance(pods[0], dict) else {}
    program = argv[0] if isinstance(argv, list) and argv else None
    if not isinstance(program, str) or program != first.get("python") or not Path(program).is_absolute():
        return "", row
    return ("" if Path(program).exists() else program), row


def _todays_python(run: RunDir) -> dict[str, Any]:
    """With today's code a run of the operator's own machine goes on with today's Python where its own is gone."""
    lost, row = _lost_python(run)
    if lost and row.get("head") == "local":
        return {"argv": [sys.executable, *map(str, row["argv"][1:])]}
    _refuse_lost_python(run)
    return {}


def _refuse_lost_python(run: RunDir) -> None:
    lost, row = _lost_python(run)
    if lost:
        here = row.get("head") == "local"
        again = f"{relaunch(row)}   (makes the environment anew); then resume"
        raise LocalError(
            "E-CTL-009", f"the Python that run {run.run_id} was launched with is gone", where=lost,
            fix=f"orch resume {run.run_id} --code current   (with this orch and its Python)" if here else again,
        )  # fmt: skip


def _asked_by(request: Path) -> dict[str, Any]:
    """What a request to resume asks for; of one that cannot be read, nothing but to go on."""
    args = (try_read_json(request) or {}).get("args")
    told = args if isinstance(args, dict) else {}
    allow = told.get("allow")
    return {"checkpoint": told.get("checkpoint"), "changes": told.get("changes", {}), "tree": told.get("tree"),
            "allow": sorted(map(str, allow)) if isinstance(allow, list) else []}  # fmt: skip


def _takes_the_place(wanted: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Nothing that somebody asked for is lost but the older code, which may be why nobody answers."""
    same = all(wanted[k] == asked[k] for k in ("checkpoint", "changes"))
    return same and set(asked["allow"]) <= set(wanted["allow"])


def _replace(request: Path, who: str) -> None:
    ack = Ack(False, who, time.time(), "another request to resume, with the code of that day, took its place")
    try:
        atomic_write_json(RunDir.ack_of(request), as_wire(ack))
    except OSError as e:
        raise _cannot_write(RunDir.ack_of(request), e) from e


def _asked_otherwise(run: RunDir, waiting: Path, asked: dict[str, Any], wanted: dict[str, Any]) -> ConflictError:
    words = {"changes": "other changes of its job", "tree": "other code", "allow": "other fields that may differ"}
    there = escape(asked["checkpoint"] or "its newest checkpoint", 40)
    others = " and ".join(text for key, text in words.items() if asked[key] != wanted[key])
    ident = run.run_id
    again = shlex.join([f"--allow-config-change={field}" for field in wanted["allow"]])
    instead = f"; orch resume {ident} --code current {again}".rstrip() + "   (takes its place)"
    return ConflictError(
        "E-CTL-007", f"run {ident} was asked already to resume from {there}" + (f" with {others}" if others else ""),
        where=str(waiting), value=wanted["checkpoint"], expected="one resume at a time",
        fix=f"orch status {ident}" + (instead if _takes_the_place(wanted, asked) else ""),
    )  # fmt: skip


def _refuse_older_code(run: RunDir, tree: Path | None, needs: str, option: str) -> None:
    """A supervisor of an older orch would go on without what `option` asks for, and say nothing."""
    files = tree or Path(tree_of(OrchHome(run.path.parents[1]), run, try_read_json(run.run_json) or {}))
    if not (files / needs).is_file():
        raise LocalError(
            "E-CTL-008", f"the orch that run {run.run_id} was launched with knows no {option.split()[0]}",
            where=str(files), value=option.partition(" ")[2],
            fix=f"orch resume {run.run_id} {option} --code current",
        )  # fmt: skip


def ack_of(row: dict[str, Any]) -> Ack:
    """Whatever was in the file, it is an answer: a field of another type is left at its default."""
    ts, data = row.get("ts"), row.get("data")
    return Ack(
        ok=row.get("ok") is True,
        who=str(row.get("who", "")),
        ts=float(ts) if isinstance(ts, int | float) else 0.0,
        why=str(row.get("why", "")),
        data=data if isinstance(data, dict) else {},
    )


def _newest(home: OrchHome) -> tuple[str, Path] | None:
    """(interpreter of orch's parts, tree) of the newest run that can still be carried out."""
    rows = [r for r in (try_read_json(home.run(i).run_json) for i in run_ids(home)) if r is not None]
    for row in sorted(rows, key=_created, reverse=True):
        pods = row.get("pods")
        tree = Path(str(row.get("tree", "")))
        if isinstance(pods, list) and pods and isinstance(pods[0], dict) and tree.is_absolute() and tree.is_dir():
            python = str(pods[0].get("orch_python") or pods[0].get("python"))
            if Path(python).exists():
                return python, tree
    return None


def _created(row: dict[str, Any]) -> float:
    created = row.get("created")
    return float(created) if isinstance(created, int | float) else 0.0
