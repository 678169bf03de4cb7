"""Requests in the run directory that wait for the supervisor, and their answers.

`dump` belongs to the keeper and is left alone. A file that is no request (a link, somebody else's, torn, foreign JSON)
becomes a `RequestSeen` with a problem, so that it is answered and looked at no more. Never raises for what it reads.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from orchestrator.supervisor.seen import RequestSeen
from workloads.contract.allowed import is_allowable
from workloads.contract.errors import escape
from workloads.contract.files import atomic_write_json, dump_json, read_json
from workloads.contract.haltfile import MAX_WHY_CHARS
from workloads.contract.jobchanges import are_changes
from workloads.contract.records import Ack, Request, as_wire, from_wire
from workloads.contract.rundir import RunDir, step_of_checkpoint, verb_of_request

VERBS = frozenset({"halt", "resume"})
MAX_REQUEST_BYTES = 64 << 10
MAX_PENDING = 100
SETTLE_S = 2.0


def pending(run: RunDir, now: float) -> tuple[RequestSeen, ...]:
    """Unanswered requests, oldest first, at most 100. `now`: Unix seconds."""
    try:
        names = sorted(os.listdir(run.requests))
    except OSError:
        return ()
    known = set(names)
    found = []
    for name in names:
        verb = verb_of_request(name)
        if verb is None or verb == "dump":
            continue
        if RunDir.ack_of(run.requests / name).name in known:
            continue
        seen = _read(run.requests / name, verb, now)
        if seen is not None:
            found.append(seen)
        if len(found) == MAX_PENDING:
            break
    return tuple(found)


def _read(path: Path, verb: str, now: float) -> RequestSeen | None:
    """None while a torn file may still be in the making."""
    try:
        st = path.lstat()
        if st.st_uid not in (os.geteuid(), 0):
            return RequestSeen(path.name, verb, problem=f"it belongs to another user (uid {st.st_uid})")
        request = _checked(from_wire(Request, read_json(path, MAX_REQUEST_BYTES)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as e:
        if path.is_symlink() or now - _mtime(path) > SETTLE_S:
            return RequestSeen(path.name, verb, problem=f"it is not a request: {escape(e)}")
        return None
    if verb not in VERBS or request.verb != verb:
        return RequestSeen(path.name, verb, problem=f"`{escape(request.verb)}` is not something a run can be asked")
    return RequestSeen(path.name, verb, escape(request.who, 80), escape(request.why, MAX_WHY_CHARS), request.args)


def _checked(request: Request) -> Request:
    texts_ok = all(isinstance(t, str) for t in (request.verb, request.who, request.why))
    if not texts_ok or not isinstance(request.args, dict):
        raise ValueError("a field has another type")
    if not _is_json(request.args):
        raise ValueError("args hold a number that is not finite, or are nested too deeply")
    tree, argv = request.args.get("tree"), request.args.get("argv")
    if tree is not None and not (isinstance(tree, str) and Path(tree).is_absolute() and Path(tree).is_dir()):
        raise ValueError("args.tree is not a directory here")
    if argv is not None and not (isinstance(argv, list) and argv and all(isinstance(a, str) for a in argv)):
        raise ValueError("args.argv is not a list of words")
    allow = request.args.get("allow")
    if allow is not None and not (isinstance(allow, list) and all(map(is_allowable, allow))):
        raise ValueError("args.allow is not a list of fields")
    changes = request.args.get("changes")
    if changes is not None and not are_changes(changes):
        raise ValueError("args.changes are not changes of a job")
    named = request.args.get("checkpoint")
    if named is not None and not (isinstance(named, str) and step_of_checkpoint(named) is not None):
        raise ValueError("args.checkpoint is not the name of a checkpoint")
    return request


def _is_json(args: dict[str, Any]) -> bool:
    """What is read is more than what may be written: Python takes NaN and 1e999 for numbers."""
    try:
        dump_json(args)
    except (ValueError, RecursionError):
        return False
    return True


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def answer(run: RunDir, request: RequestSeen, ok: bool, why: str, data: dict[str, Any]) -> None:
    """Write the answer beside the request. Raises OSError when the disk refuses."""
    ack = Ack(ok, "supervisor", time.time(), why, data)
    atomic_write_json(RunDir.ack_of(run.requests / request.name), as_wire(ack))
