"""PodAgent: a thin Ray face of one pod. It holds the pod's share of the placement and relays to the keeper there.

Made by `gang.RayGang` inside its bundle, detached and named `<run id>/<pod>`; Ray starts it again when it is killed. It
keeps no state: what it knows is in files. It never starts or stops a rank itself. While it lives, so does the pod's
keeper: one that was killed is started again within seconds, without anybody at the operator's side.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.health.facts import PodFacts, RankFacts
from orchestrator.supervisor.hands import Hands, busy_devices, free_port, gpu_uuids
from orchestrator.supervisor.observe import Figures, PodEye
from orchestrator.supervisor.seen import RankSeen
from pods.keeper.client import running
from pods.remote import gpueye, gpuheld
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome

log = logging.getLogger(__name__)

KEEPER_LOOK_S = 2.0


@contextmanager
def _plain_errors() -> Iterator[None]:
    """An OrchError does not survive pickling; what it says does."""
    try:
        yield
    except OrchError as e:
        raise RuntimeError(f"{e.code}: {e.what}" + (f" ({e.where})" if e.where else "")) from None


class PodAgent:
    """Methods are called by the supervisor with a time limit; errors travel back as they are."""

    def __init__(self, run_id: str, pod: str, ranks: Sequence[int], home: str, python: str, tree: str) -> None:
        self.home = OrchHome(Path(home))
        self.hands = Hands(self.home, python, Path(tree))
        self.eye = PodEye(self.home.run(run_id), pod, tuple(ranks))
        self._devices: tuple[str, ...] | None = None
        threading.Thread(target=self._keep_keeper, daemon=True, name="keeper").start()

    def _keep_keeper(self) -> None:
        while True:
            time.sleep(KEEPER_LOOK_S)
            try:
                if running(self.home) is None:
                    self.hands.keeper()
            except Exception:  # the thread must live as long as the agent; the next look tries again
                log.exception("the keeper could not be started")

    def ping(self) -> str:
        return self.eye.pod

    def devices(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that Ray gave this pod's ranks."""
        if self._devices is None:
            import ray

            with _plain_errors():
                self._devices = gpu_uuids([str(i) for i in ray.get_gpu_ids()])
        return self._devices

    def busy(self) -> dict[str, str]:
        """Our devices that somebody leases -> who, and those whose memory somebody holds -> a sentence."""
        leased = busy_devices(self.devices())
        return gpuheld.held([d for d in self.devices() if d not in leased], gpueye.shared()) | leased

    def gpu_used(self) -> dict[str, float]:
        """MiB used on each of our devices."""
        return gpuheld.used(self.devices(), gpueye.shared())

    def gpu_left(self, before: Mapping[str, float]) -> list[str]:
        """What of their memory did not come back, a sentence each; waits for it up to 10 s."""
        return gpuheld.gpu_memory_back(self.devices(), before, gpueye.shared())

    def free_port(self) -> int:
        return free_port()

    def spawn(self, orders: Sequence[str]) -> None:
        with _plain_errors():
            self.hands.spawn(orders)

    def sweep(self, mark: str) -> tuple[int, ...]:
        with _plain_errors():
            return self.hands.sweep(mark)

    def look(self, attempt: int) -> tuple[list[RankSeen], Figures, int, list[RankFacts], PodFacts]:
        """(ranks, figures, best step, health of the ranks, health of the pod)."""
        ranks = self.eye.look(attempt)
        return ranks, self.eye.figures(), self.eye.best_step(), *self.eye.facts(time.monotonic())

    def strays(self) -> tuple[int, ...]:
        return self.eye.strays()
