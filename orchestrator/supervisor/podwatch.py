"""How a pod is, every few seconds: disk, memory, GPUs. Never blocks: each look at them is a thread of its own.

A nvidia-smi that hangs or a network disk that does not answer keeps that thread; what was seen before is handed on
meanwhile, with its age, and no second look is begun. Used by `observe.PodEye` on the pod itself.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.health.facts import GpuFacts, PodFacts
from pods.remote.podhealth import PodProbe
from workloads.contract.files import try_read_json
from workloads.contract.rundir import RunDir

log = logging.getLogger(__name__)

EVERY_S = 3.0
_POD = frozenset(f.name for f in dataclasses.fields(PodFacts)) - {"pod", "age_s", "gpus", "guard"}
_GPU = frozenset(f.name for f in dataclasses.fields(GpuFacts))


class Probe(Protocol):
    def look(self, now: float) -> Mapping[str, Any]:
        """Keys as the fields of PodFacts. `now`: monotonic seconds."""


class PodWatch:
    def __init__(
        self,
        run: RunDir,
        pod: str,
        ranks: Sequence[int],
        make: Callable[[RunDir, Sequence[str]], Probe] = PodProbe,
        every_s: float = EVERY_S,
    ) -> None:
        self.run, self.pod, self.ranks, self.every_s = run, pod, ranks, every_s
        self._make = make
        self._probe: Probe | None = None
        self._attempt = 0
        self._facts = PodFacts(pod)
        self._at: float | None = None  # monotonic seconds of the look that `_facts` is of
        self._began: float | None = None
        self._thread: threading.Thread | None = None

    def look(self, attempt: int, now: float) -> PodFacts:
        """What was seen last, and how old it is. Begins another look when one is due."""
        if self._began is None:
            self._at = self._began = now
            self._look(attempt, now)
        elif now - self._began >= self.every_s and not (self._thread and self._thread.is_alive()):
            self._look(attempt, now)
        since = now if self._at is None else self._at
        return dataclasses.replace(self._facts, age_s=max(now - since, 0.0))

    def _look(self, attempt: int, now: float) -> None:
        self._began = now
        thread = threading.Thread(target=self._work, args=(attempt, now), name="pod-health", daemon=True)
        try:
            thread.start()
        except RuntimeError as e:  # no thread is to be had: another look that was not made
            log.warning("the pod could not be looked at: %s", e)
            return
        self._thread = thread

    def _work(self, attempt: int, now: float) -> None:
        try:
            if self._probe is None or attempt != self._attempt:
                self._probe, self._attempt = self._make(self.run, self._devices(attempt)), attempt
            facts = facts_of(self.pod, self._probe.look(now))
        except Exception:  # what could not be seen is old, and that is all
            log.exception("the pod could not be looked at")
            return
        self._facts, self._at = facts, now

    def _devices(self, attempt: int) -> list[str]:
        """UUIDs of the GPUs that the ranks of this attempt were given on this pod."""
        orders = (try_read_json(self.run.rank_order(attempt, rank)) or {} for rank in self.ranks)
        rows = (order.get("devices") for order in orders)
        return [d for row in rows if isinstance(row, list) for d in row if isinstance(d, str)]


def facts_of(pod: str, row: Mapping[str, Any]) -> PodFacts:
    """A probe's row as facts; keys that are none are passed over."""
    gpus = [g if isinstance(g, GpuFacts) else _gpu(g) for g in row.get("gpus") or ()]
    return PodFacts(pod=pod, gpus=tuple(gpus), **{k: v for k, v in row.items() if k in _POD})


def _gpu(row: Mapping[str, Any]) -> GpuFacts:
    known = {k: v for k, v in row.items() if k in _GPU}
    return GpuFacts(**(known | {"xids": tuple(known.get("xids") or ())}))
