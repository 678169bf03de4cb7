"""A thread that makes the next batches while the model works. Bounded, in order, and it never hides an error.

The state travels with each batch: what lies in the queue was not consumed. Called by the trainer and by whoever
checks a job's data.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from workloads.contract.config.job import DataSpec
from workloads.data.reading import Patience
from workloads.data.stream import Batch, Feed, FeedState, Tokens

DEPTH = 2
WAIT_S = 30.0
"""Patience with a source beyond its own deadlines: for tokenizing, and a machine that is busy."""
SLICE_S = 1.0  # counted in slices: a rank that was stopped for a minute has lost one of them
_WINDOW = 200


@dataclass(frozen=True)
class FetchTimes:
    """Seconds that a step waited for its batch: the last one, and quantiles of the last 200."""

    last_s: float
    p50_s: float
    p95_s: float


class DocsReport:
    """`data.report_docs`: a line every so many documents that this rank has consumed."""

    def __init__(self, every: int) -> None:
        self._every, self._documents, self._tokens = every, 0, 0

    def note(self, batch: Batch) -> None:
        before = self._documents // self._every
        self._documents, self._tokens = self._documents + (batch.docs or 0), self._tokens + batch.x_BT.size
        if self._documents // self._every > before:
            print(f"data: {self._documents} documents, {self._tokens} tokens from {batch.source}", flush=True)


class Prefetcher:
    """`next()` gives batches in order, beginning with the one after `state`."""

    def __init__(
        self,
        make: Callable[[FeedState], Batch],
        state: FeedState,
        *,
        wait_s: float = WAIT_S,
        report: DocsReport | None = None,
        gpu: int | None = None,
    ) -> None:
        """`gpu`: the device that batches go to. They lie in pinned memory then, so that a copy waits for nothing."""
        self._gpu = gpu
        self._make, self._slices, self._report = make, math.ceil(wait_s / SLICE_S), report
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(maxsize=DEPTH)
        self._stop = threading.Event()
        self._waits: deque[float] = deque(maxlen=_WINDOW)
        self._thread = threading.Thread(target=self._fill, args=(state,), name="orch-data", daemon=True)
        self._thread.start()

    def next(self) -> Batch:
        """The next batch. TimeoutError when none came for `wait_s`; the maker's own error is raised here."""
        begin = time.perf_counter()
        item = self._take()
        self._waits.append(time.perf_counter() - begin)
        if isinstance(item, Exception):
            raise item
        if self._report:
            self._report.note(item)
        return item

    def _take(self) -> Batch | Exception:
        for _ in range(self._slices):
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=SLICE_S)
        raise TimeoutError(f"no batch for {self._slices * SLICE_S:.0f} s")

    def times(self) -> FetchTimes:
        ordered = sorted(self._waits)
        last = len(ordered) - 1
        return FetchTimes(self._waits[-1], ordered[last // 2], ordered[round(last * 0.95)])

    def close(self) -> None:
        """Stop the thread and wait for it, at most a second."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _fill(self, state: FeedState) -> None:
        try:
            if self._gpu is not None:
                _enter(self._gpu)
            while not self._stop.is_set():
                batch = self._make(state)
                state = batch.state
                self._put(batch if self._gpu is None else _in_pinned_memory(batch))
        except Exception as e:  # handed to the step that wants the batch, which raises it
            self._put(e)

    def _put(self, item: Batch | Exception) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue


def _enter(gpu: int) -> None:
    """A new thread stands on GPU 0, which is another rank's, and would open a context there."""
    import torch

    torch.cuda.set_device(gpu)


def _in_pinned_memory(batch: Batch) -> Batch:
    """The batch in buffers of torch's pinned pool, which takes each back once the copy out of it is done."""
    return replace(batch, x_BT=_pinned(batch.x_BT), y_BT=_pinned(batch.y_BT))


def _pinned(tokens: Tokens) -> Tokens:
    import torch

    dtype = torch.from_numpy(np.empty(0, tokens.dtype)).dtype
    buffer: Tokens = torch.empty(tokens.shape, dtype=dtype, pin_memory=True).numpy()
    buffer[...] = tokens
    return buffer


def prefetcher(feed: Feed, state: FeedState, data: DataSpec, gpu: int | None = None) -> Prefetcher:
    """As the job says how long to wait and what to report."""
    wait_s = Patience(data.read_timeout_s, data.read_tries).worst_s() + WAIT_S
    report = DocsReport(data.report_docs) if data.report_docs else None
    return Prefetcher(feed.batch, state, wait_s=wait_s, report=report, gpu=gpu)
