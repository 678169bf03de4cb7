"""Calls that may hang, with a limit: one thread, one call at a time, and a caller who never waits longer than it said.

Ray's client calls have no common timeout, and some wait for a dead GCS for a minute. A call that hangs keeps its
thread; until it returns every further one fails at once, so that the supervisor's loop goes on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class StillBusyError(TimeoutError):
    """An earlier call has not returned."""


class BoundedCaller:
    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last: Future[object] | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def __call__(self, call: Callable[[], T], timeout_s: float) -> T:
        """What `call` returns or raises. TimeoutError after `timeout_s`, StillBusyError when the last one hangs."""
        if self._last is not None and not self._last.done():
            raise StillBusyError("an earlier call to Ray has not returned")
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(call())
            except BaseException as e:  # it belongs to the caller, whatever it is
                future.set_exception(e)

        self._last = future  # type: ignore[assignment]
        self._jobs.put(job)
        return future.result(timeout_s)

    def _work(self) -> None:
        while True:
            self._jobs.get()()
