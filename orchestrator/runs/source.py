"""Where a run lies: on this machine, or on a pod that is asked over its one connection while the copy here is read.

`resolve` gives the source of the run that a person means. Readers take a `Source` and call `refresh` before each look;
for a run of this machine that does nothing. Nothing here decides how a run does: losing a pod is told as that.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator.runs.find import pick
from orchestrator.runs.index import list_runs
from orchestrator.runs.views import FORGOTTEN, RunView, Sight, snapshot
from workloads.contract.errors import OrchError, RefusedError, RemoteError, UnreachableError
from workloads.contract.files import try_read_json
from workloads.contract.records import Ack
from workloads.contract.rundir import OrchHome, RunDir

FAR_POLL_S = 0.5
RETRY_S = (1.0, 10.0)
ASK_S = 20.0
REACH_S = 2.0  # for a sign of life of a pod, where its copy can be shown instead
WAKE_S = 45.0  # a keeper may take 20 s to start, after one that hangs was ended
FIRST_BUDGET = 1 << 20
MAX_ROUNDS = 100_000
ONWARD = -1  # of a file: what comes after that which is here
Extra = Mapping[str, "int | None"]
OnBytes = Callable[[int], None]


class Source(Protocol):
    """One run, and the machine that can be asked about it."""

    home: OrchHome
    run: RunDir
    pod: str
    far: bool

    def refresh(self, scope: str = "status", extra: Extra | None = None) -> bool:
        """Bring the copy up to date by one bounded round; True when there is more. OrchError when that cannot be done.

        `extra`: also these files (names as in `runfiles`): their last lines, from their beginning (None), or `ONWARD`.
        """
        ...

    def view(self, now: float | None = None) -> RunView: ...

    def floor(self, path: Path) -> int:
        """From which byte on a file of the run can be read here."""
        ...

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """Carry out `runs.<op>` where the run lies."""
        ...

    def wake(self, own: Callable[[], tuple[str, Path]] | None = None) -> None:
        """Have a keeper run there. OrchError when none can be started."""
        ...

    def is_awake(self) -> bool: ...

    def push_tree(self) -> str:
        """Orch's own files of today, where the run lies; their path there."""
        ...

    def secrets(self) -> dict[str, str]:
        """What must not be shown of the run; {} where it cannot be learned."""
        ...

    def close(self) -> None: ...


class LocalSource:
    """A run of this machine."""

    pod, far = "local", False

    def __init__(self, home: OrchHome, run: RunDir) -> None:
        self.home, self.run = home, run

    def refresh(self, scope: str = "status", extra: Extra | None = None) -> bool:
        return False

    def view(self, now: float | None = None) -> RunView:
        return snapshot(self.run, time.time() if now is None else now)

    def floor(self, path: Path) -> int:
        return 0

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        from pods.remote.dispatch import dispatch

        return dispatch(self.home, f"runs.{op}", args, b"").fields

    def wake(self, own: Callable[[], tuple[str, Path]] | None = None) -> None:
        from pods.remote import control

        control.wake(self.home, own)

    def is_awake(self) -> bool:
        from pods.keeper.client import running

        return running(self.home) is not None

    def push_tree(self) -> str:
        from pods.tree import ensure_tree

        return str(ensure_tree(self.home))

    def secrets(self) -> dict[str, str]:
        from orchestrator.runs.redact import secrets_of

        return secrets_of(self.run)

    def close(self) -> None:
        return


class FarSource:
    """A run on a pod. `connect` gives the pod; it is asked for when it is first needed, and kept until `close`."""

    far = True

    def __init__(self, home: OrchHome, run: RunDir, pod: str, connect: Callable[[], Any]) -> None:
        from orchestrator.runs.mirror import Mirror

        self.home, self.run, self.pod = home, run, pod
        self.mirror = Mirror(run, pod)
        self.reachable: bool | None = None
        self.error: OrchError | None = None
        self.size_bytes = 0  # fetched by this source so far
        self.reach_s: float | None = None  # see `SshTransport`; None: as long as any command waits
        self._connect = connect
        self._pod: Any = None
        self._budget = FIRST_BUDGET
        self._secrets: dict[str, str] | None = None

    def far_pod(self) -> Any:
        """The pod itself (`pods.pod.Pod`)."""
        if self._pod is None:
            self._pod = self._connect()
        return self._pod

    def refresh(self, scope: str = "status", extra: Extra | None = None) -> bool:
        from orchestrator.runs.sync import Ask, sync
        from pods.remote.mirror import BUDGET_BYTES, MIN_BUDGET_BYTES
        from pods.remote.runfiles import SCOPES

        ident, began = self.run.run_id, time.monotonic()
        asks = {ident: Ask(self.mirror, SCOPES[scope], extra or {})}
        try:
            done = sync(self.home, self.far_pod(), asks, budget=self._budget)
        except OrchError as e:
            self.reachable, self.error = False, e
            self._budget = max(self._budget // 2, MIN_BUDGET_BYTES)  # over a bad link less arrives whole at a time
            raise
        self.reachable, self.error = True, None
        self.size_bytes += done.size_bytes
        took = time.monotonic() - began
        if took > 4.0:
            self._budget = max(self._budget // 2, MIN_BUDGET_BYTES)
        elif done.more and took < 1.0:
            self._budget = min(self._budget * 2, BUDGET_BYTES)
        if ident in done.missing and not self.run.path.is_dir():
            raise RemoteError(
                "E-RUN-006", f"run {ident} is not on pod {self.pod}", where=self.place,
                fix=f"orch runs --from {self.pod}",
            )  # fmt: skip
        return done.more

    @property
    def place(self) -> str:
        """The run directory there, for people."""
        return f"{self.pod}:{self.mirror.index.root or '~/.orch'}/runs/{self.run.run_id}"

    def sight(self, here_now: float) -> Sight:
        if self.reachable is not True:
            self.mirror.reload()
        index = self.mirror.index
        trouble = "refused" if isinstance(self.error, RefusedError) else "unreachable"
        if self.error is not None and self.error.code == "E-INV-020":
            trouble = FORGOTTEN
        return Sight(self.pod, self.place, index.seen, here_now, self.reachable, index.missing, index.observed, trouble)

    def view(self, now: float | None = None) -> RunView:
        """As of the moment when the pod was last asked, by its clock: not reaching a pod makes no rank silent."""
        return snapshot(self.run, self.mirror.index.pod_now, self.sight(time.time() if now is None else now))

    def floor(self, path: Path) -> int:
        from orchestrator.runs.mirror import floor_of

        return floor_of(self.run, path)

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        limit_s = WAKE_S if op == "wake" else ASK_S
        fields: dict[str, Any] = self.far_pod().call(f"runs.{op}", args, timeout_s=limit_s).fields
        if op in ("dump", "resume") and not isinstance(fields.get("request"), str):
            raise RemoteError("E-MIRROR-007", f"pod {self.pod} named no request", value=fields.get("request"))
        return fields

    def wake(self, own: Callable[[], tuple[str, Path]] | None = None) -> None:
        self.ask("wake")

    def is_awake(self) -> bool:
        return self.mirror.index.keeper

    def push_tree(self) -> str:
        from pods.snapshot import push_tree

        return str(push_tree(self.far_pod()))

    def secrets(self) -> dict[str, str]:
        if self._secrets is None:
            if self.reachable is not True:
                return self._secrets_here()
            try:
                told = self.far_pod().call("secrets.read", {"run": self.run.run_id}).fields.get("values")
            except OrchError:
                return self._secrets_here()
            self._secrets = {k: v for k, v in told.items() if isinstance(v, str)} if isinstance(told, dict) else {}
        return self._secrets

    def _secrets_here(self) -> dict[str, str]:
        """Where the pod cannot be asked: what a launch from this machine would take, as far as it is there."""
        import os

        from orchestrator.runs.views import secret_names
        from pods.secrets import collect

        found: dict[str, str] = {}
        for name in secret_names(self.run):
            with contextlib.suppress(OrchError):
                found |= collect([name], os.environ, self.home)
        return found

    def close(self) -> None:
        pod, self._pod = self._pod, None
        if pod is not None:
            pod.close()


def as_source(run: RunDir | Source) -> Source:
    """A run directory of this machine as a source; a source as it is."""
    return LocalSource(OrchHome(run.path.parents[1]), run) if isinstance(run, RunDir) else run


def source_of(home: OrchHome, run: str, pod: str) -> Source:
    """The run with this id, on the pod of this name ("" for this machine). Nothing is connected yet."""
    if not pod:
        return LocalSource(home, home.run(run))

    def connect() -> Any:
        from pods.access import find_pod

        return find_pod(home, pod, reach_s=source.reach_s)[1]

    source = FarSource(home, home.mirrored(run), pod, connect)
    return source


def resolve(home: OrchHome, ref: str) -> Source:
    """The run that `ref` names (see `find`). UsageError (exit 2) when there is none, or more than one."""
    row = pick(list_runs(home), ref)
    return source_of(home, row.run, row.pod)


def fetch(source: Source, scope: str = "status", extra: Extra | None = None, on_bytes: OnBytes | None = None) -> None:
    """`refresh` until there is no more. OrchError as it says, E-MIRROR-006 when there is no end."""
    for _ in range(MAX_ROUNDS):
        more = source.refresh(scope, extra)
        if on_bytes and isinstance(source, FarSource):
            on_bytes(source.size_bytes)
        if not more:
            return
    raise RemoteError("E-MIRROR-006", f"pod {source.pod} sends without end", where=source.run.run_id)


class Contact:
    """Refreshing while one follows: a pod that cannot be reached is told once and tried again, for ever.

    Retries come after 1 to 10 s, jittered. Any other error (a changed host key, an answer that is none) is raised.
    """

    def __init__(self, source: Source, say: Callable[[str], None]) -> None:
        self.source, self._say = source, say
        self._last = time.monotonic()
        self._lost = False
        self._next, self._delay = 0.0, RETRY_S[0]

    def refresh(self, scope: str = "status", extra: Extra | None = None) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        try:
            more = self.source.refresh(scope, extra)
        except UnreachableError:
            now = time.monotonic()
            if not self._lost:
                since = f"since {now - self._last:.0f} s" if now - self._last >= 1 else "now"
                self._say(f"pod {self.source.pod} cannot be reached {since} (the run goes on there); trying again")
            self._lost = True
            self._next = now + self._delay * random.uniform(0.5, 1.0)
            self._delay = min(self._delay * 2, RETRY_S[1])
            return False
        if self._lost:
            self._say(f"pod {self.source.pod} is reached again after {time.monotonic() - self._last:.0f} s")
        self._lost, self._next, self._delay, self._last = False, 0.0, RETRY_S[0], time.monotonic()
        return more


def wait_ack(source: Source, request: str, *, timeout_s: float, poll_s: float = 0.1) -> Ack | None:
    """The answer to a request (its file's name), or None when there is none in time."""
    from pods.remote.control import ack_of
    from pods.remote.runfiles import kind_of, name_in

    path = RunDir.ack_of(source.run.requests / request)
    if "/" in request or kind_of(name_in(source.run, path)) is None:
        raise RemoteError("E-MIRROR-007", f"pod {source.pod} named a request that is none", value=request)
    deadline = time.monotonic() + timeout_s
    contact = Contact(source, lambda _: None)
    while True:
        contact.refresh()
        row = try_read_json(path)
        if row is not None:
            return ack_of(row)
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(FAR_POLL_S if source.far else poll_s, left))
