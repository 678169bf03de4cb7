"""Operations on the runs of this pod: make a run directory, leave a request in it, wake the keeper.

Everything here can be asked twice: a run directory that is there is that run, a request to resume that nobody has
answered is the same request, a keeper that lives is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pods.keeper.client import KeeperClient, ensure_keeper, running
from pods.remote import control
from pods.remote.dispatch import Answer, Operation, want
from pods.remote.stage import Staged, ensure_home
from workloads.contract.errors import ConflictError, OrchError, RemoteError
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
    """{run, tree, why, who} -> {request}; `tree` null for the code it was launched with"""
    tree = args.get("tree")
    if isinstance(tree, str) and Path(tree).parent != home.trees:
        raise ConflictError("E-CTL-006", "a tree lies elsewhere", value=tree, expected=str(home.trees))
    path = Path(tree) if isinstance(tree, str) else None
    return _asked(control.resume(_run(home, args), who=_text(args, "who"), why=_text(args, "why"), tree=path))


_ALL: tuple[Callable[[OrchHome, Mapping[str, Any], bytes], Answer], ...] = (
    stage, wake, keeper, down, halt, dump, resume,
)  # fmt: skip
OPERATIONS: Mapping[str, Operation] = {f.__name__: f for f in _ALL}
