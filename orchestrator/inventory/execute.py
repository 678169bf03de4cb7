"""One command on several pods at once. The words are passed whole: no shell reads them on the way.

A pod that cannot be asked does not stop the others. Called by `orch pods exec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pods.access import open_pod
from pods.transport.base import Result
from pods.transport.fleet import each
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome

MAX_EXIT = 255


@dataclass(frozen=True)
class Outcome:
    pod: str
    result: Result | None
    error: OrchError | None = None

    @property
    def exit_code(self) -> int:
        """What a shell would say: a signal is 128 and its number."""
        if self.result is None:
            return int(self.error.exit_code) if self.error else MAX_EXIT
        code = self.result.exit_code
        return min(code if code >= 0 else 128 - code, MAX_EXIT)

    def as_json(self) -> dict[str, Any]:
        if self.result is None:
            return {"pod": self.pod, "exit_code": None, "error": self.error.as_dict() if self.error else None}
        return {"pod": self.pod, "exit_code": self.result.exit_code, "stdout": self.result.stdout,
                "stderr": self.result.stderr}  # fmt: skip


def execute(
    home: OrchHome, pods: Mapping[str, PodSpec], argv: Sequence[str], *, timeout_s: float,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:  # fmt: skip
    """`tell` is called for each pod as it is done, from one thread at a time."""
    import threading

    lock, unsaid = threading.Lock(), list[OSError]()

    def say(outcome: Outcome) -> None:
        with lock:
            try:
                tell(outcome)
            except OSError as e:  # whoever read our output is gone, or its disk is full: not the pod's doing
                unsaid.append(e)

    def work(name: str) -> Outcome:
        pod = open_pod(home, name, pods[name])
        try:
            outcome = Outcome(name, pod.transport.run(argv, timeout_s=timeout_s))
        except OrchError as e:
            outcome = Outcome(name, None, e)
        finally:
            pod.close()
        say(outcome)
        return outcome

    outcomes = []
    for name, done in zip(pods, each(pods, work), strict=True):
        outcome = done if isinstance(done, Outcome) else Outcome(name, None, done)
        outcomes.append(outcome)
        if outcome is not done:  # it came to no outcome of its own, and was not told
            say(outcome)
    if unsaid:
        raise unsaid[0]
    return outcomes


def worst(outcomes: Sequence[Outcome]) -> int:
    return max((o.exit_code for o in outcomes), default=0)
