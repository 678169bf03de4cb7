"""A thread that makes the next batches while the model works. Bounded, in order, and it never hides an error.

The state travels with each batch: what lies in the queue was not consumed. Called by the trainer.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from workloads.data.batches import Batch

DEPTH = 2
WAIT_SLICES = 30
SLICE_S = 1.0  # counted in slices: a rank that was stopped for a minute has lost one of them
_WINDOW = 200


@dataclass(frozen=True)
class FetchTimes:
    """Seconds that a step waited for its batch: the last one, and quantiles of the last 200."""

    last_s: float
    p50_s: float
    p95_s: float


class Prefetcher:
    """`next()` gives batches in order, beginning after `samples` consumed samples."""

    def __init__(self, make: Callable[[int], Batch], samples: int) -> None:
        self._make = make
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(maxsize=DEPTH)
        self._stop = threading.Event()
        self._waits: deque[float] = deque(maxlen=_WINDOW)
        self._thread = threading.Thread(target=self._fill, args=(samples,), name="orch-data", daemon=True)
        self._thread.start()

    def next(self) -> Batch:
        """The next batch. TimeoutError when none came for 30 s; the maker's own error is raised here."""
        begin = time.perf_counter()
        item = self._take()
        self._waits.append(time.perf_counter() - begin)
        if isinstance(item, Exception):
            raise item
        return item

    def _take(self) -> Batch | Exception:
        for _ in range(WAIT_SLICES):
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=SLICE_S)
        raise TimeoutError(f"no batch for {WAIT_SLICES * SLICE_S:.0f} s")

    def times(self) -> FetchTimes:
        ordered = sorted(self._waits)
        last = len(ordered) - 1
        return FetchTimes(self._waits[-1], ordered[last // 2], ordered[round(last * 0.95)])

    def close(self) -> None:
        """Stop the thread and wait for it, at most a second."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _fill(self, samples: int) -> None:
        try:
            while not self._stop.is_set():
                batch = self._make(samples)
                samples = batch.samples
                self._put(batch)
        except Exception as e:  # handed to the step that wants the batch, which raises it
            self._put(e)

    def _put(self, item: Batch | Exception) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
