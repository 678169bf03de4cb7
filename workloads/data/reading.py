"""Reading blocks with a deadline: a read that gives no answer is abandoned and tried again, and then given up.

Every read runs in a thread of its own, for a hung disk or server cannot be interrupted; an abandoned one ends when its
own socket or kernel does, and never holds the process up. Blocks are read ahead, a few at a time.
Every wait is told on stderr when it ends badly. Called by `workloads.data.cursor`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from functools import partial
from typing import TypeVar

from workloads.contract.errors import OrchError, escape
from workloads.data.blocks import BlockSource, SourceGone

BACKOFF_S = (0.5, 1.0, 2.0, 4.0)
T = TypeVar("T")

Documents = Sequence[str | None]


def start(work: Callable[[], T]) -> Future[T]:
    """`work` in a new daemon thread; its answer, or its error, in the future."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as e:  # handed to whoever waits
            answer.set_exception(e)

    threading.Thread(target=run, name="orch-read", daemon=True).start()
    return answer


class Patience:
    """How long a read may take and how often it is tried: `data.read_timeout_s`, `data.read_tries`."""

    def __init__(self, timeout_s: float, tries: int) -> None:
        self.timeout_s, self.tries = timeout_s, tries

    def worst_s(self) -> float:
        """Seconds until a source that never answers is given up."""
        return (2 * self.tries - 1) * self.timeout_s

    def pause_s(self, failed: int) -> float:
        return BACKOFF_S[min(failed, len(BACKOFF_S)) - 1]

    def call(
        self, work: Callable[[], T], source: str, what: str, begun: Future[T] | None = None,
        progress: Callable[[], int] = int,
    ) -> T:  # fmt: skip
        """`work`'s answer. SourceGone when no try gave one, and at once when it says so itself; its OrchErrors too.

        progress: as long as it moves, a read is not late.
        """
        why, asked_s = "", None
        for n in range(1, self.tries + 1):
            future = begun if begun is not None and n == 1 else start(work)
            try:
                return self._result(future, progress)
            except Late:
                why = f"no answer for {self.timeout_s:g} s" if not future.done() else "the read timed out"
            except (OrchError, SourceGone):
                raise
            except Exception as e:  # libraries raise what they like: each is one try that failed
                why, asked_s = f"{type(e).__name__}: {e}", getattr(e, "wait_s", None)
            why = escape(f"{what}: {why}", 300)
            print(f"warning: data: {source}: {why} (try {n} of {self.tries})", file=sys.stderr, flush=True)
            if n < self.tries:
                time.sleep(min(self.timeout_s, self.pause_s(n) if asked_s is None else asked_s))
        raise SourceGone(source, why)

    def _result(self, future: Future[T], progress: Callable[[], int]) -> T:
        while True:
            before = progress()
            try:
                return future.result(self.timeout_s)
            except Late:
                if future.done() or progress() == before:
                    raise


class BlockReader:
    """Blocks of one source for the shards of one rank. `get` from one thread only."""

    def __init__(self, source: BlockSource, patience: Patience) -> None:
        self.source, self._patience = source, patience
        self._lock = threading.Lock()
        self._under_way: dict[int, Future[Documents]] = {}
        self._wanted: deque[int] = deque()

    def ahead(self, block: int) -> None:
        """Begin to read a block that will be asked for; a few at a time."""
        with self._lock:
            if block not in self._under_way and block not in self._wanted:
                self._wanted.append(block)
        self._pump()

    def get(self, block: int) -> Documents:
        """Its documents. SourceGone when they cannot be had."""
        with self._lock:
            begun = self._under_way.get(block)
            if block in self._wanted:
                self._wanted.remove(block)
        try:
            return self._patience.call(
                lambda: self.source.read(block), self.source.name, self.source.where(block), begun
            )
        finally:
            with self._lock:
                self._under_way.pop(block, None)
            self._pump()

    def _pump(self) -> None:
        begun: list[Future[Documents]] = []
        with self._lock:
            busy = sum(not f.done() for f in self._under_way.values())
            while self._wanted and busy + len(begun) < self.source.ahead:
                block = self._wanted.popleft()
                self._under_way[block] = start(partial(self.source.read, block))
                begun.append(self._under_way[block])
        for future in begun:  # without the lock: one that is done already calls back here and now
            future.add_done_callback(lambda _: self._pump())
