"""Talking to the keeper of this machine: one JSON line out, one back, over its Unix socket.

Used by the CLI and by PodAgents. Every call has a bound; errors are `OrchError`s.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from pods.keeper.runs import lock_is_held
from pods.keeper.spawn import clean_env, interpreter, spawn_detached
from workloads.contract.errors import ConflictError, LocalError, OrchError, RemoteError
from workloads.contract.files import read_tail, try_read_json
from workloads.contract.process import ProcId, boot_id
from workloads.contract.rundir import OrchHome

CALL_TIMEOUT_S = 15.0
START_TIMEOUT_S = 20.0
ELSEWHERE_S = 3.0
"""Until then the record may be one from before this machine was started anew, and a keeper be about to replace it."""
MAX_REPLY_BYTES = 4 << 20


def running(home: OrchHome) -> dict[str, Any] | None:
    """The living keeper's record (pid, start_time, boot_id, host, tree, python, socket), or None."""
    record = try_read_json(home.keeper_record)
    if record is None:
        return None
    pid, start_time, boot, path = (record.get(k) for k in ("pid", "start_time", "boot_id", "socket"))
    if type(pid) is not int or type(start_time) is not int or not isinstance(boot, str) or not isinstance(path, str):
        return None
    return record if pid > 0 and ProcId(pid, start_time, boot).alive() else None


def sound(home: OrchHome) -> dict[str, Any] | None:
    """As `running`, but None also for one whose own Python was deleted: Ray must not be started by that one."""
    record = running(home)
    return record if record is not None and Path(str(record.get("python", ""))).exists() else None


class KeeperClient:
    def __init__(self, home: OrchHome) -> None:
        self.home = home

    def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **args: Any) -> dict[str, Any]:
        """One request. RemoteError when the keeper is missing or silent; its own error as it gave it."""
        record = running(self.home)
        if record is None:
            raise RemoteError(
                "E-KEEP-002", "no keeper runs here", where=str(self.home.path), fix="`orch launch` starts it"
            )
        try:
            reply = _exchange(record["socket"], {"op": op, **args}, timeout_s)
        except (OSError, ValueError) as e:
            raise RemoteError("E-KEEP-003", f"the keeper did not answer `{op}`: {e}", where=record["socket"]) from e
        if not reply.get("ok"):
            error = reply.get("error") or {}
            kind = ConflictError if error.get("code") == "E-KEEP-010" else RemoteError
            raise kind(
                error.get("code", "E-KEEP-004"), error.get("what", "the keeper refused"), fix=error.get("fix"),
                value=error.get("value"),
            )  # fmt: skip
        return reply

    def ping(self) -> dict[str, Any]:
        return self.call("ping")

    def poke(self) -> None:
        """Have the keeper look at its runs now instead of at its next tick."""
        self.call("poke")

    def spawn(self, order_path: Path) -> dict[str, Any]:
        """Start the shim of one order; idempotent. Answers `{"ok":true,"started":bool}`."""
        return self.call("spawn", order=str(order_path))

    def ray(self) -> dict[str, Any]:
        """State of this pod's Ray node: `{"state": down|starting|up|failed, ...}`."""
        reply: dict[str, Any] = self.work()["ray"]
        return reply

    def work(self, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """`{ray, troubles: {run id or "": {what, since, times}}, look_age_s}`; an older keeper tells `ray` alone."""
        return self.call("ray", timeout_s=timeout_s)

    def down(self) -> dict[str, Any]:
        """Stop Ray and the keeper. ConflictError naming the runs that have not ended."""
        return self.call("down")

    def sweep(self, mark: str) -> dict[str, Any]:
        """Kill every process carrying `mark` (a run id or deeper)."""
        return self.call("sweep", mark=mark)


def _exchange(path: str, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(timeout_s)
        s.connect(path)
        s.sendall(json.dumps(message).encode() + b"\n")
        with s.makefile("rb") as f:
            reply = json.loads(f.readline(MAX_REPLY_BYTES))
    if not isinstance(reply, dict):
        raise ValueError("not an object")
    return reply


def ensure_keeper(home: OrchHome, python: str, tree: Path, *, replace: bool = False) -> KeeperClient:
    """A keeper that answers: the living one, or a new one run by `python` from `tree`.

    `replace=True` (an operator's launch, or a resume with today's code) ends a keeper that runs from another tree
    first, and one whose own Python is gone is replaced where `python` is there; it holds no state, so nothing is lost.
    Raises RemoteError with the end of its log when it does not come up in 20 s, and where the home is on a shared disk
    and the keeper of another machine keeps it.
    """
    client = KeeperClient(home)
    record = running(home)
    lost = record is not None and sound(home) is None and Path(python).exists()
    if record is not None and (lost or (replace and (record.get("tree"), record.get("python")) != (str(tree), python))):
        _end(record)
        record = None
    if record is not None:
        try:
            client.ping()
        except OrchError:
            _end(record)  # it lives but does not answer
        else:
            return client
    _start(home, python, tree)
    started = time.monotonic()
    while (waited_s := time.monotonic() - started) < START_TIMEOUT_S:
        if waited_s > ELSEWHERE_S and (host := _elsewhere(home)):
            raise RemoteError(
                "E-KEEP-006", "the keeper of another machine keeps this home", where=str(home.path), value=host,
                expected="a home for each machine", fix="use orch there, or set ORCH_HOME to a folder of this machine",
            )  # fmt: skip
        if running(home) is not None:
            try:
                client.ping()
            except RemoteError:
                pass  # not listening yet
            else:
                return client
        time.sleep(0.02)
    last = (read_tail(home.keeper_log, 2000).decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
    raise RemoteError(
        "E-KEEP-005", "the keeper did not start in 20 s; its last line is told", where=str(home.keeper_log), value=last,
        fix=f"tail {shlex.quote(str(home.keeper_log))}",
    )  # fmt: skip


def _elsewhere(home: OrchHome) -> str:
    """The machine whose keeper holds the lock of this home; "" when nobody does, or one on this machine."""
    record = try_read_json(home.keeper_record) or {}
    host = record.get("host", "its name is not known")
    ours = record.get("boot_id") in (None, boot_id()) or host == socket.gethostname()
    return "" if ours or not lock_is_held(home.keeper_lock) else str(host)


def _start(home: OrchHome, python: str, tree: Path) -> None:
    try:
        home.keeper.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise LocalError("E-HOME-001", f"{e.strerror}", where=str(home.keeper)) from e
    env = clean_env(os.environ, PYTHONPATH=str(tree), ORCH_HOME=str(home.path), PYTHONUNBUFFERED="1")
    if not Path(python).exists():  # an environment that was deleted: a keeper needs the standard library alone
        python = interpreter()
    argv = [python, "-s", "-m", "pods.keeper", str(home.path)]
    spawn_detached(python, argv, env=env, log=home.keeper_log)


def _end(record: dict[str, Any], timeout_s: float = 10.0) -> None:
    """SIGTERM, then SIGKILL, by identity; bounded."""
    ident = ProcId(record["pid"], record["start_time"], record["boot_id"])
    ident.signal(15)
    deadline = time.monotonic() + timeout_s
    while ident.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    ident.signal(9)
