"""Operations on the runs of this pod: make a run directory, leave a request in it, wake the keeper.

Everything here can be asked twice: a run directory that is there is that run, a request to resume that nobody has
answered is the same request, a keeper that lives is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pods.keeper.client import KeeperClient, ensure_keeper, running
from pods.remote import control, startfrom
from pods.remote.dispatch import Answer, Operation, want
from pods.remote.killing import kill_at
from pods.remote.resumable import config_of, newer_than
from pods.remote.stage import Staged, ensure_home
from workloads.contract.errors import ConflictError, OrchError, RemoteError
from workloads.contract.jobchanges import are_changes
from workloads.contract.rundir import OrchHome, RunDir


def _run(home: OrchHome, args: Mapping[str, Any]) -> RunDir:
    run = home.run(want(args, "run", str))
    if not run.path.is_dir():
        raise RemoteError("E-RUN-006", f"run {run.run_id} is not on this pod", where=str(run.path))
    return run


def stage(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
    """{run, run_json, resolved_config, secrets, code} and the diff -> {created}. `code`: a snapshot's id or null."""
    ensure_home(home)
    run = home.run(want(args, "run", str))
    if run.run_json.exists():
        return Answer({"created": False, "dir": str(run.path)})
    code = args.get("code")
    created = Staged(run, home).commit(
        want(args, "run_json", dict), want(args, "resolved_config", dict), data,
        secrets=want(args, "secrets", dict), code=code if isinstance(code, str) else None,
    )  # fmt: skip
    return Answer({"created": created, "dir": str(run.path)})


def wake(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{python, tree, replace} -> {awake}: a keeper run by `python` from `tree`; by the newest run's when null."""
    python, tree = args.get("python"), args.get("tree")
    if isinstance(python, str) and isinstance(tree, str):
        ensure_keeper(home, python, Path(tree), replace=args.get("replace") is True).poke()
        return Answer({"awake": True})
    return Answer({"awake": control.wake(home)})


def keeper(home: OrchHome, _: Mapping[str, Any], __: bytes) -> Answer:
    """{} -> {record, ray}: the living keeper's record or null, and the state of its Ray node."""
    record = running(home)
    if record is None:
        return Answer({"record": None, "ray": {"state": "down"}})
    try:
        ray = KeeperClient(home).ray()
    except OrchError as e:
        ray = {"state": "unknown", "error": e.what}
    return Answer({"record": record, "ray": ray})


def down(home: OrchHome, _: Mapping[str, Any], __: bytes) -> Answer:
    """{} -> {stopped, ...}: end an idle Ray and the keeper. ConflictError naming the runs that have not ended."""
    if running(home) is None:
        return Answer({"stopped": False})
    return Answer({k: v for k, v in KeeperClient(home).down().items() if k != "ok"})


def _asked(request: Path) -> Answer:
    return Answer({"request": request.name})


def _text(args: Mapping[str, Any], key: str) -> str:
    return want(args, key, str)


def halt(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{run, now, why, who} -> {request}"""
    now = want(args, "now", bool)
    return _asked(control.halt(_run(home, args), now=now, why=_text(args, "why"), who=_text(args, "who")))


def dump(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{run, ranks, why, who} -> {request}"""
    ranks = None if args.get("ranks") is None else [int(k) for k in want(args, "ranks", list)]
    return _asked(control.dump(_run(home, args), ranks=ranks, why=_text(args, "why"), who=_text(args, "who")))


def resume(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{run, tree, allow, checkpoint, changes, why, who} -> {request, aside}: as `control.resume`, `aside`: the names of
    the checkpoints that are newer than `checkpoint`"""
    tree = args.get("tree")
    if isinstance(tree, str) and Path(tree).parent != home.trees:
        raise ConflictError("E-CTL-006", "a tree lies elsewhere", value=tree, expected=str(home.trees))
    path = Path(tree) if isinstance(tree, str) else None
    allow = [str(field) for field in want(args, "allow", list)] if "allow" in args else []
    run, who, why = _run(home, args), _text(args, "who"), _text(args, "why")
    checkpoint = want(args, "checkpoint", str) if "checkpoint" in args else None
    changes = want(args, "changes", dict) if "changes" in args else None
    if changes is not None and not are_changes(changes):
        raise RemoteError("E-POD-014", "an operation needs changes as changes of a job", value=repr(changes)[:80])
    aside = () if checkpoint is None else newer_than(run, checkpoint)
    request = control.resume(run, who=who, why=why, tree=path, allow=allow, checkpoint=checkpoint, changes=changes)
    return Answer({"request": request.name, "aside": list(aside)})


def checkpoint(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{ref} -> {path, run, step}: the checkpoint that a new run can begin with"""
    found = startfrom.find(home, want(args, "ref", str))
    return Answer({"path": str(found.path), "run": found.run, "step": found.step})


def config(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{run, checkpoint} -> {checkpoint, step, config}: what the checkpoint that a resume would go on from says of the
    job that wrote it; {} where there is none, or it says nothing"""
    named = want(args, "checkpoint", str) if "checkpoint" in args else None
    found = config_of(_run(home, args), named)
    return Answer({} if found is None else {"checkpoint": found.name, "step": found.step, "config": found.config})


def kill(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{run, step, ranks, after, wait_s} -> {ranks, step, attempt, ended}: as `kill_at`"""
    ranks = [int(k) for k in want(args, "ranks", list)]
    wait_s = float(want(args, "wait_s", int))
    step, after = want(args, "step", int), want(args, "after", int)
    done = kill_at(_run(home, args), step, ranks, after=after, wait_s=wait_s)
    return Answer({"ranks": list(done.ranks), "step": done.step, "attempt": done.attempt, "ended": done.ended})


_ALL: tuple[Callable[[OrchHome, Mapping[str, Any], bytes], Answer], ...] = (
    stage, wake, keeper, down, halt, dump, resume, checkpoint, config, kill,
)  # fmt: skip
OPERATIONS: Mapping[str, Operation] = {f.__name__: f for f in _ALL}
