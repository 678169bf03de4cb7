"""The keeper's Unix socket: one JSON object a line in, one out, from processes of the same user only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from typing import Any

from pods.keeper.keeper import Keeper, say
from pods.keeper.runs import lock_is_held, tree_of
from pods.keeper.spawn import clean_env, interpreter, spawn_detached
from pods.remote.left import left_of
from workloads.contract.files import try_read_json
from workloads.contract.process import ProcId, marked, sweep
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome

MAX_LINE_BYTES = 1 << 20
IDLE_TIMEOUT_S = 30.0


class Refusal(Exception):
    """An answer of `ok: false`."""

    def __init__(self, code: str, what: str, value: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.row = {k: v for k, v in {"code": code, "what": what, "value": value, "fix": fix}.items() if v}


def socket_path(home: OrchHome) -> Path:
    """A short path (at most 107 bytes fit) in a directory of our own below /tmp."""
    digest = hashlib.sha256(str(home.path).encode()).hexdigest()[:10]
    return Path(f"/tmp/orch-{os.getuid()}-keeper-{digest}") / "keeper.sock"


class Operations:
    """What a client may ask. Every method takes the request and returns the answer's fields."""

    def __init__(self, keeper: Keeper, wake: threading.Event) -> None:
        self.keeper, self.wake = keeper, wake

    def ping(self, _: dict[str, Any]) -> dict[str, Any]:
        me = ProcId.me()
        return {"pid": me.pid, "start_time": me.start_time, "runs": [w.run.run_id for w in self.keeper.runs.active()]}

    def poke(self, _: dict[str, Any]) -> dict[str, Any]:
        self.wake.set()
        return {}

    def ray(self, _: dict[str, Any]) -> dict[str, Any]:
        """Its Ray node, and what keeps it from its work: by run id, "" for the keeper itself."""
        look_age_s = time.monotonic() - self.keeper.looked
        return {"ray": self.keeper.ray(), "troubles": self.keeper.troubles.view(), "look_age_s": look_age_s}

    def down(self, _: dict[str, Any]) -> dict[str, Any]:
        answer = self.keeper.down()
        if "busy" in answer:
            runs = ", ".join(answer["busy"])
            raise Refusal(
                "E-KEEP-010", "runs have not ended here", runs, "`orch halt --all`, or wait until they have ended"
            )
        self.wake.set()
        return answer

    def sweep(self, request: dict[str, Any]) -> dict[str, Any]:
        mark = str(request.get("mark", ""))
        if not RUN_ID_PATTERN.fullmatch(mark.split("/")[0]):
            raise Refusal("E-KEEP-011", "a sweep needs the mark of one run", mark)
        run = self.keeper.home.run(mark.split("/")[0])
        swept, stayed = sweep(lambda: left_of(run) if mark == run.run_id else marked(mark), 3.0)
        return {"swept": swept, "stayed": stayed}

    def spawn(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start the shim of an order. A living shim or a finished record makes it a no-op."""
        path = Path(str(request.get("order", "")))
        order = self._order(path)
        record_path = path.with_name(path.name.replace(".order.json", ".json"))
        record = try_read_json(record_path)
        lock = path.with_name(path.name.replace(".order.json", ".lock"))
        if (record is not None and "ended" in record) or lock_is_held(lock):
            return {"started": False}
        run = self.keeper.home.run(order["run"])
        spec = try_read_json(run.run_json) or {}
        env = clean_env(os.environ, PYTHONPATH=tree_of(self.keeper.home, run, spec))
        python = interpreter()
        argv = [python, "-s", "-m", "workloads.shim", str(path)]
        spawn_detached(python, argv, env=env, log=run.shim_log(int(order["rank"])))
        return {"started": True}

    def _order(self, path: Path) -> dict[str, Any]:
        """The order at `path`, which must lie inside a run of this home."""
        order = try_read_json(path)
        if order is None or not {"run", "rank", "attempt"} <= order.keys():
            raise Refusal("E-KEEP-012", "there is no readable order", str(path))
        try:
            expected = self.keeper.home.run(order["run"]).rank_order(int(order["attempt"]), int(order["rank"]))
        except ValueError as e:
            raise Refusal("E-KEEP-012", f"the order names no run: {e}", str(path)) from e
        if expected != path:
            raise Refusal("E-KEEP-012", "the order does not lie where its run and rank say", str(path))
        return order


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, path: Path, operations: Operations) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        st = path.parent.lstat()
        if st.st_uid != os.getuid() or st.st_mode & 0o077:
            raise PermissionError(f"{path.parent} is not ours alone")
        path.unlink(missing_ok=True)
        self.operations = operations
        self._answering = 0
        self._changed = threading.Condition()
        super().__init__(str(path), Handler)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around one request, from its first byte to the last of its answer."""
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def answered(self, timeout_s: float) -> bool:
        """Wait until every request that came has its answer: `down` ends the process that has to say so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._answering == 0, timeout_s)


class Handler(socketserver.StreamRequestHandler):
    timeout = IDLE_TIMEOUT_S

    def handle(self) -> None:
        _, uid, _ = struct.unpack("3i", self.request.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
        if uid not in (os.getuid(), 0):
            return
        try:
            while line := self.rfile.readline(MAX_LINE_BYTES):
                assert isinstance(self.server, Server)
                with self.server.answering():
                    self.wfile.write(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            return  # the client went away

    def _answer(self, line: bytes) -> dict[str, Any]:
        assert isinstance(self.server, Server)
        try:
            request = json.loads(line)
            operation = _operation(self.server.operations, request["op"])
            return {"ok": True, **operation(request)}
        except Refusal as e:
            return {"ok": False, "error": e.row}
        except (ValueError, KeyError, TypeError) as e:
            return {"ok": False, "error": {"code": "E-KEEP-013", "what": f"not a request: {type(e).__name__}: {e}"}}
        except Exception as e:  # the thread must answer, and the keeper must live
            say(f"request failed: {type(e).__name__}: {e}")
            return {"ok": False, "error": {"code": "E-KEEP-004", "what": f"{type(e).__name__}: {e}"}}


def _operation(operations: Operations, name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if name not in ("ping", "poke", "ray", "down", "sweep", "spawn"):
        raise ValueError(f"unknown op {name!r}")
    method: Callable[[dict[str, Any]], dict[str, Any]] = getattr(operations, name)
    return method
