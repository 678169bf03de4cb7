"""One thread a pod that asks it again and again what its runs do, over one connection that it keeps.

A pod that does not answer costs the others nothing. It counts as lost after two looks that failed one after the other,
so that a laptop that wakes up finds its connections dead and makes new ones before anything is said. Called by
`watchloop`, which only reads what was seen last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.runs.fleet import survey
from orchestrator.runs.source import REACH_S, FarSource
from workloads.contract.errors import OrchError, RemoteError, UnreachableError
from workloads.contract.rundir import OrchHome

if TYPE_CHECKING:
    from pods.pod import Pod
    from workloads.contract.config.inventory import PodSpec

EVERY_S = 3.0
SLOWEST_S = 30.0
FAILS = 2
Opener = Callable[[str, "PodSpec"], "Pod"]


class PodEye:
    """`looks`: how many ended, well or not; `error`: why the pod counts as lost, or None."""

    def __init__(self, home: OrchHome, name: str, spec: PodSpec, opener: Opener | None = None) -> None:
        self.home, self.name, self.spec = home, name, spec
        self.looks, self.elsewhere = 0, dict[str, str]()
        self.error: OrchError | None = None
        self._opener = opener or self._open
        self._pod: Pod | None = None
        self._fails = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"orch-eye-{name}", daemon=True)
        self._thread.start()

    @property
    def asked(self) -> bool:
        """Whether it is known if the pod answers."""
        return self.looks > 0 and (self.error is not None or self._fails == 0)

    def pod(self) -> Pod:
        """The pod, for a request of the watch's own; it has a lock of its own."""
        pod = self._pod
        if pod is None:
            pod = self._pod = self._opener(self.name, self.spec)
        return pod

    def source(self, run: str) -> FarSource:
        """The copy of a run of this pod, as it was seen last."""
        source = FarSource(self.home, self.home.mirrored(run), self.name, self.pod)
        source.reachable, source.error = self.error is None, self.error
        return source

    def close(self) -> None:
        self._ended.set()

    def _open(self, name: str, spec: PodSpec) -> Pod:
        from pods.access import open_pod

        return open_pod(self.home, name, spec, reach_s=REACH_S)

    def _work(self) -> None:
        delay_s = 0.0
        while not self._ended.wait(delay_s):
            error = self._look()
            self._fails = 0 if error is None else self._fails + 1
            if error is None:
                self.error = None
            elif self._fails >= FAILS or not isinstance(error, UnreachableError):
                self.error = error
            self.looks += 1
            delay_s = EVERY_S if self._fails < FAILS else min(EVERY_S * 2 ** (self._fails - FAILS), SLOWEST_S)
            delay_s = 0.5 if self._fails == 1 else delay_s
        if self._pod is not None:
            self._pod.close()

    def _look(self) -> OrchError | None:
        try:
            (look,) = survey(self.home, {self.name: self.spec}, lambda *_: self.pod())
            error = look.error
            self.elsewhere = look.elsewhere
            done = look.done
        except OrchError as e:
            error, done = e, True
        except Exception as e:  # the top of a thread that must live: it is told, and the pod looked at again
            what = f"pod {self.name} could not be read: {type(e).__name__}: {e}"
            error, done = RemoteError("E-WATCH-003", what), True
        if error is not None:
            pod, self._pod = self._pod, None
            if pod is not None and done:
                pod.close()  # one that still hangs is left to its own limits
        return error


def wait_all(eyes: list[PodEye], limit_s: float) -> None:
    """Until every pod was asked once (lost ones twice), or `limit_s` is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and not all(e.asked for e in eyes):
        time.sleep(0.05)
