"""This pod's Ray node: started with a token and explicit ports, found again, stopped by pid. Never `ray stop`.

`ray start --block` is the node: it ends its other processes about 1 s after one of them died. Everything it starts
carries ORCH_CLUSTER=<id>, by which leftovers (Ray's own agents survive a dead GCS) are found and killed. Losing the
node harms no rank: shims and ranks are not its children.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.facts import cpu_count, gpus_of
from pods.keeper.jobsapi import JobsApi
from pods.keeper.rayports import RayPorts, free_block
from pods.keeper.spawn import clean_env, spawn_detached
from pods.transport.local import LocalTransport
from workloads.contract.errors import RemoteError
from workloads.contract.files import atomic_write, atomic_write_json, read_tail, try_read_json
from workloads.contract.process import ProcId, marked
from workloads.contract.rundir import OrchHome

CLUSTER_MARK = "ORCH_CLUSTER"
START_LIMIT_S = 120.0
SILENT_LIMIT_S = 90.0
OBJECT_STORE_BYTES = 100_000_000
KEEP_SESSIONS = 2
TOKEN = re.compile(r"[0-9a-f]{64}")
RESTART_BACKOFF_S = (0.0, 5.0, 15.0, 30.0, 60.0)


@dataclass
class RayNode:
    """One node of one cluster. `tick` is called about once a second and moves it towards "up"."""

    home: OrchHome
    cluster_id: str
    pod: str
    pythons: Callable[[], Sequence[str]]
    """those that can run it, best first; LookupError when there is none"""
    say: Callable[[str], None]
    state: str = "down"  # down, starting, up, failed
    error: str | None = None
    python: str = ""  # the one that runs it
    _blamed: Counter[str] = field(default_factory=Counter)  # starts with this Python that failed
    _failures: int = 0
    _next_try: float = 0.0
    _started: float = 0.0
    _last_answer: float = 0.0
    _record: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.home.cluster(self.cluster_id)

    @property
    def record_path(self) -> Path:
        return self.folder / "node.json"

    @property
    def log(self) -> Path:
        return self.folder / "ray.log"

    @property
    def temp(self) -> Path:
        """Ray's sockets lie here: at most 107 bytes of path, so a short one, on local disk."""
        return Path(f"/tmp/orch-{os.getuid()}-ray-{self.cluster_id[:8]}")

    @property
    def sessions(self) -> Path:
        """Ray opens its directory to everybody (0777) when it starts: it lies in one that stays ours."""
        return self.temp / "r"

    @property
    def generation(self) -> str:
        """Names one life of the cluster: what was submitted to another one is gone."""
        return str(self._record.get("generation", ""))

    @property
    def since(self) -> float:
        """Monotonic seconds at which it was started or found again."""
        return self._started

    def api(self) -> JobsApi:
        return JobsApi(self._record["ports"]["dashboard"], self._token() or "")

    def view(self) -> dict[str, Any]:
        ports = self._record.get("ports", {})
        return {
            "state": self.state,
            "cluster": self.cluster_id,
            "generation": self.generation,
            "since": self._record.get("ts"),
            "gcs_port": ports.get("gcs"),
            "dashboard_port": ports.get("dashboard"),
            "log": str(self.log),
            "temp": str(self.temp),
            **({"error": self.error} if self.error else {}),
        }

    def adopt(self) -> bool:
        """Find the node that an earlier keeper started. True when it lives."""
        record = try_read_json(self.record_path)
        if not record or not _is_whole(record) or not self._main(record):
            return False
        self._record, self.state, self._started = record, "starting", time.monotonic()
        self.python = str(record.get("python") or "")
        if not self.python:
            with contextlib.suppress(LookupError):
                self.python = self.pythons()[0]
        return True

    def tick(self, now: float) -> None:
        """Start it, notice that it is up, notice that it died. `now` is monotonic seconds."""
        if self.state in ("down", "failed"):
            if now >= self._next_try and not self.adopt():
                self._start(now)
            return
        if self._main(self._record) is None:
            self._fail(now, "the node's main process ended", logged=True)
        elif self.api().alive():
            self._last_answer = now
            if self.state == "starting":
                self.state, self.error, self._failures = "up", None, 0
                self._blamed.clear()
                self.say(f"Ray is up after {now - self._started:.1f} s ({self.generation})")
        elif self.state == "starting" and now - self._started > START_LIMIT_S:
            self._fail(now, f"its API did not answer within {START_LIMIT_S:.0f} s", logged=True)
        elif self.state == "up" and now - self._last_answer > SILENT_LIMIT_S:
            self._fail(now, f"its API has not answered for {SILENT_LIMIT_S:.0f} s", logged=True)

    def stop(self) -> list[int]:
        """End every process of this cluster on this pod; bounded. Returns the pids that stayed."""
        stayed: list[ProcId] = []
        for signum, wait_s in ((15, 3.0), (9, 5.0)):
            stayed = marked(self.cluster_id, CLUSTER_MARK)
            for ident in stayed:
                ident.signal(signum)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline and (stayed := [p for p in stayed if p.alive()]):
                time.sleep(0.05)
            if not marked(self.cluster_id, CLUSTER_MARK):
                break
        self.state = "down"
        self._record = {}
        with contextlib.suppress(OSError):  # what is no record of a living node is not adopted either
            self.record_path.unlink(missing_ok=True)
        return [p.pid for p in stayed]

    def _main(self, record: dict[str, Any]) -> ProcId | None:
        """The living `ray start --block` process of a record."""
        try:
            ident = ProcId(record["pid"], record["start_time"], record["boot_id"])
        except KeyError:
            return None
        return ident if ident.alive() else None

    def _token_path(self) -> Path:
        return self.folder / "token"

    def _token(self) -> str | None:
        """None where the file holds no token."""
        try:
            text = read_tail(self._token_path(), 200).decode(errors="replace").strip()
        except OSError:
            return None
        return text if TOKEN.fullmatch(text) else None

    def _start(self, now: float) -> None:
        self.stop()  # leftovers of an earlier life
        try:
            self.python = min(self.pythons(), key=lambda p: self._blamed[p])
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._token() is None:
                atomic_write(self._token_path(), secrets.token_hex(32).encode())
            self._prepare_temp()
            ports, generation = free_block(self.cluster_id), secrets.token_hex(8)
            env = clean_env(os.environ, **self._env(ports, generation))
            spawn_detached(self.python, self._argv(ports), env=env, log=self.log)
            main = self._find_main(generation)
            if main is None:
                self._fail(now, "`ray start` ended at once", logged=True)
                return
            self._record = {
                "v": 1, "pid": main.pid, "start_time": main.start_time, "boot_id": main.boot_id, "ts": time.time(),
                "generation": generation, "ports": vars(ports).copy(), "python": self.python,
            }  # fmt: skip
            atomic_write_json(self.record_path, self._record)
        except (OSError, LookupError, RemoteError) as e:  # RemoteError: the Python went away since it was chosen
            self._fail(now, e.what if isinstance(e, RemoteError) else str(e))
            return
        self.state, self._started, self._last_answer = "starting", now, now
        self.say(f"starting Ray (cluster {self.cluster_id}, GCS port {ports.gcs}) with {self.python}")

    def _find_main(self, generation: str, timeout_s: float = 5.0) -> ProcId | None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = marked(generation, "ORCH_RAY_GENERATION")
            if found:
                return min(found, key=lambda p: p.start_time)
            time.sleep(0.02)
        return None

    def _env(self, ports: RayPorts, generation: str) -> dict[str, str]:
        return {
            CLUSTER_MARK: self.cluster_id,
            "ORCH_RAY_GENERATION": generation,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_path()),
            "RAY_memory_monitor_refresh_ms": "0",  # it kills supervisors when ranks fill the memory
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",  # 15 by default: ranks that fill the CPUs would starve their supervisor
            "PYTHONUNBUFFERED": "1",
            **ports.env(),
        }

    def _argv(self, ports: RayPorts) -> list[str]:
        gpus, _ = gpus_of(LocalTransport())
        return [
            self.python, "-s", "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", *ports.flags(),
            f"--temp-dir={self.sessions}", f"--num-cpus={cpu_count()}", f"--num-gpus={len(gpus)}",
            f"--object-store-memory={OBJECT_STORE_BYTES}", f'--resources={{"pod:{self.pod}": 1}}',
            "--disable-usage-stats",
        ]  # fmt: skip

    def _prepare_temp(self) -> None:
        """A directory of ours, 0700, with only the newest old sessions kept. PermissionError when it is foreign."""
        self.temp.mkdir(mode=0o700, exist_ok=True)
        st = self.temp.lstat()
        if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.getuid():
            raise PermissionError(f"{self.temp} is not a directory of ours")
        self.temp.chmod(0o700)
        sessions = sorted((p for p in self.sessions.glob("session_2*") if not p.is_symlink()), reverse=True)
        for old in sessions[KEEP_SESSIONS:]:
            shutil.rmtree(old, ignore_errors=True)

    def _fail(self, now: float, why: str, *, logged: bool = False) -> None:
        """`logged`: Ray was started, so that the end of its log says more; and the next try is with another Python,
        if there is one."""
        tail = read_tail(self.log, 2000).decode(errors="replace").strip().splitlines() if logged else []
        if logged:
            self._blamed[self.python] += 1
        self.stop()
        wait_s = RESTART_BACKOFF_S[min(self._failures, len(RESTART_BACKOFF_S) - 1)]
        self._failures += 1
        self.state, self._next_try = "failed", now + wait_s
        error = f"{why}; last line of its log: {tail[-1][:200]}" if tail else why
        if error != self.error or wait_s != RESTART_BACKOFF_S[-1]:
            self.say(f"Ray failed: {error}; next try in {wait_s:.0f} s")
        self.error = error


def _is_whole(record: Mapping[str, Any]) -> bool:
    """A record that names a process, a life and a port; anything may lie in the file."""
    ports = record.get("ports")
    port = ports.get("dashboard") if isinstance(ports, dict) else None
    return (
        type(port) is int and 0 < port < 65536 and type(record.get("pid")) is int and record["pid"] > 1
        and type(record.get("start_time")) is int and isinstance(record.get("boot_id"), str)
        and isinstance(record.get("generation"), str)
    )  # fmt: skip
