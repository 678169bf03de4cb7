"""Making sure of a pod's environment: what is wanted, uv carried there, the build started, looked at until it ends.

Everything can be asked again: an environment that is whole is taken, a build that goes on is looked at (also one that
another person started), one that was cut is begun anew. The build does not need this process. Called by the launch and
by `orch pods bootstrap`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pods.copy import push_file
from pods.environment.home import Say, carried_uv
from pods.environment.pythons import bring_python, bring_to_bare
from pods.environment.spec import EnvSpec, Machine, Platform
from pods.environment.wheels import push_wheels, wheelhouse
from pods.pod import Pod
from pods.remote.wire import error_of
from pods.transport.base import Transport
from workloads.contract.errors import LocalError, OrchError, RemoteError, UnreachableError, escape
from workloads.contract.rundir import OrchHome

BUILD_S = 3 * 3600.0
STARTS_S = 20.0
TORCH_MIB = 12_000
SILENT_S = 120.0
POLL_S = 0.2
SLOW_POLL_S = 2.0
ASK_S = 60.0


@dataclass(frozen=True)
class Found:
    """An interpreter on the pod."""

    path: str
    version: str


@dataclass(frozen=True)
class About:
    """What an environment on a pod depends on, as its own process tells it (`spec.Machine`)."""

    platform: Platform
    pythons: tuple[Found, ...]  # best first
    uv: str | None
    home_free_mib: int
    orch_home: str | None

    @property
    def arch(self) -> str:
        return self.platform.machine

    @property
    def libc(self) -> str:
        return f"{self.platform.libc} {'.'.join(map(str, self.platform.version))}"

    def has(self, minor: str) -> bool:
        return any(found.version.startswith(f"{minor}.") for found in self.pythons)


@dataclass(frozen=True)
class EnvResult:
    """`python` is the environment's interpreter on the pod; `built` says that this call waited for a build."""

    hash: str
    python: str
    built: bool
    seconds: float
    marker: dict[str, Any]
    stages: tuple[tuple[str, float], ...] = ()


def ensure_python(transport: Transport, facts: Machine, home: OrchHome, say: Say = lambda _: None) -> str:
    """A Python for a pod that has none that orch can use (`NeedsPython`); its path there. Brought once."""
    return bring_to_bare(transport, facts.orch_home, home, say)


def about(pod: Pod) -> About:
    """Ask the pod's process. RemoteError for an answer that is none."""
    found = pod.call("env.about", timeout_s=ASK_S).fields
    try:
        version = (int(found["libc_version"][0]), int(found["libc_version"][1]))
        pythons = tuple(Found(str(path), str(version)) for path, version, _ in found["pythons"])
        platform = Platform(str(found["machine"]), str(found["libc"]), version)
        free = int(found["free_bytes"]) >> 20
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise RemoteError("E-ENV-080", f"pod {pod.name} does not say what it is", value=found) from e
    uv = found.get("uv")
    return About(platform, pythons, uv if isinstance(uv, str) else None, free, str(pod.home.path))


def ensure_environment(
    pod: Pod,
    facts: Machine,
    spec: EnvSpec,
    home: OrchHome,
    say: Say = lambda _: None,
    *,
    offline: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> EnvResult:
    """The environment `spec` on `pod`, built now if it is missing. `home` is this machine's; `spec` is of `wanted`.

    Raises what the build failed with: SpecError (requirements that cannot be met), IntegrityError (a hash),
    RemoteError; UnreachableError when the pod cannot be asked for two minutes, during which the build goes on.
    """
    began = clock()
    stages: list[tuple[str, float]] = []
    found = _look(pod, spec.hash)
    if found["state"] == "ready":
        return _result(found, spec, False, clock() - began)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = clock()
        value = work()
        stages.append((stage, clock() - start))
        return value

    if found["state"] != "building":
        if spec.has_torch and facts.home_free_mib < TORCH_MIB:
            say(f"note: {facts.home_free_mib} MiB are free there; an environment with torch may need {TORCH_MIB}")
        order = _prepare(pod, home, spec, about(pod), say, offline, timed)
        found = timed("build", lambda: _build(pod, spec, order, say, clock))
    else:
        say(f"environment {spec.hash} is being built already")
        found = timed("build", lambda: _watch(pod, spec, "", say, clock))
        if found["state"] != "ready":
            raise _ended(found, pod)
    return _result(found, spec, True, clock() - began, tuple(stages))


def _prepare(
    pod: Pod, home: OrchHome, spec: EnvSpec, seen: About, say: Say, offline: bool,
    timed: Callable[[str, Callable[[], Any]], Any],
) -> dict[str, Any]:  # fmt: skip
    """All that the build needs from here, on the pod; the arguments of `env.start`."""
    if offline and not seen.has(spec.python):
        timed("python", lambda: bring_python(pod, home, spec.python, seen.platform, say))
    uv = timed("uv", lambda: _carry_uv(pod, home, seen, say))
    wheels: list[list[object]] = []
    if offline:
        found = timed("fetch wheels", lambda: wheelhouse(home, spec, seen.platform, say))
        total = sum(w.size for w in found)
        say(f"sending {len(found)} wheels ({total / 1e6:.1f} MB)")
        timed("send wheels", lambda: push_wheels(pod, found, Meter(total, say).add))
        wheels = [w.row() for w in found]
    wanted = spec.requirements
    return {
        "hash": spec.hash, "python": spec.python, "lines": list(wanted.lines), "constraints": list(wanted.constraints),
        "hashed": wanted.hashed, "offline": offline, "wheels": wheels, "uv": uv,
    }  # fmt: skip


def _carry_uv(pod: Pod, home: OrchHome, seen: About, say: Say) -> str:
    """Where uv is on the pod: the one sent from here, else the pod's own."""
    try:
        path, version = carried_uv(home, seen.platform, say)
    except LocalError:
        if seen.uv is None:
            raise
        say(f"uv cannot be fetched here; the pod's own is used: {escape(seen.uv)}")
        return seen.uv
    target = PurePosixPath(pod.home.path) / "bin" / f"uv-{version}"
    say(f"sending uv {version}")
    return push_file(pod, path, str(target), mode=0o700)


def _build(pod: Pod, spec: EnvSpec, order: dict[str, Any], say: Say, clock: Callable[[], float]) -> dict[str, Any]:
    """Start and look; begun once more when the builder was lost."""
    say(f"building environment {spec.hash}; it goes on without this command")
    found: dict[str, Any] = {}
    for _ in range(2):
        attempt = secrets.token_hex(8)
        pod.call("env.start", {**order, "attempt": attempt}, timeout_s=ASK_S)
        found = _watch(pod, spec, attempt, say, clock)
        if found["state"] == "ready":
            return found
        if found["state"] == "failed":
            raise _ended(found, pod)
        say("the builder was lost; building again")
    raise _ended(found, pod)


def _watch(pod: Pod, spec: EnvSpec, attempt: str, say: Say, clock: Callable[[], float]) -> dict[str, Any]:
    """Look until the build has ended. A pod that does not answer for a while is asked again.

    `attempt`: our own; what an earlier one left is not taken for its end.
    """
    began, answered, told, pause = clock(), clock(), "", POLL_S
    while True:
        try:
            found = _look(pod, spec.hash)
            answered = clock()
        except UnreachableError:
            if clock() - answered > SILENT_S:
                raise
            time.sleep(SLOW_POLL_S)
            continue
        if found["state"] == "ready" or (found["state"] in ("failed", "lost") and found["attempt"] == attempt):
            return found
        waited = clock() - began
        if found["state"] != "building" and (not attempt or waited > STARTS_S):
            return found
        if waited > BUILD_S:
            raise RemoteError(
                "E-ENV-082", f"the environment is not ready on pod {pod.name}", where=str(found["log"]),
                expected=f"within {BUILD_S / 3600:.0f} h", fix="read the log there",
            )  # fmt: skip
        stage, line = found["stage"], found["line"]
        line = stage if line.startswith("== ") else f"{stage}: {line}"
        if line != told and stage and found["attempt"] == (attempt or found["attempt"]):
            told = line
            say(escape(line))
        time.sleep(pause)
        pause = min(pause * 1.2, SLOW_POLL_S)


def _look(pod: Pod, digest: str) -> dict[str, Any]:
    found = pod.call("env.look", {"hash": digest, "use": True}, timeout_s=ASK_S).fields
    if not isinstance(found.get("state"), str):
        raise RemoteError("E-ENV-080", f"pod {pod.name} does not say how far it is", value=found)
    marker = found.get("marker")
    words = {k: str(found.get(k, "")) for k in ("state", "stage", "line", "attempt", "log", "path", "python")}
    return {**words, "error": found.get("error"), "marker": marker if isinstance(marker, dict) else {}}


def _ended(found: dict[str, Any], pod: Pod) -> OrchError:
    if found["state"] == "failed":
        error = error_of(found["error"], pod.name)
        if error.fix:
            error.fix = error.fix.replace("NAME", pod.name)
        return error
    return RemoteError(
        "E-ENV-083", f"the builder of the environment was killed on pod {pod.name}", where=found["log"],
        value=f"while {escape(found['stage'])}" if found["stage"] else None,
        expected="enough memory: the pod's limit may be too small", fix=f"orch pods bootstrap {pod.name}",
    )  # fmt: skip


def _result(
    found: dict[str, Any], spec: EnvSpec, built: bool, seconds: float, stages: tuple[tuple[str, float], ...] = ()
) -> EnvResult:
    return EnvResult(spec.hash, found["python"], built, seconds, found["marker"], stages)


class Meter:
    """A line now and then about bytes on their way."""

    def __init__(self, total: int, say: Say, every_s: float = 2.0) -> None:
        self.total, self.say, self.every_s = total, say, every_s
        self.done, self.began = 0, time.monotonic()
        self.last = self.began

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every_s or self.done == self.total:
            self.last = now
            rate = self.done / 1e6 / max(now - self.began, 1e-3)
            self.say(f"sent {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB ({rate:.1f} MB/s)")
