"""One piece of work at a time beside the caller's thread: the writer of a checkpoint while training goes on.

A thread and not a process: what it does is writing, hashing and fsync, which leave the interpreter's lock alone, and a
thread dies with its rank, so that nothing goes on writing for a rank that is gone. Standard library only. Called by
`workloads.runtime.checkpoint`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Starts at once. Whatever the work raises is raised by `result`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: T | None = None
        self._error: BaseException | None = None
        self._began = time.perf_counter()
        self.seconds = 0.0
        """how long it took, once it is done"""
        self._thread = threading.Thread(target=self._carry_out, name="checkpoint", daemon=True)
        self._thread.start()

    def _carry_out(self) -> None:
        try:
            self._value = self._work()
        except BaseException as e:  # torch raises BaseExceptions too; the thread that waits raises it again
            self._error = e
        self.seconds = time.perf_counter() - self._began

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        """True when it is done within that time. Raises nothing of the work's own."""
        self._thread.join(timeout_s)
        return self.done

    def result(self) -> T:
        """What the work gave, once it is done: waits for it. Its collectives have the bound of their group."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
