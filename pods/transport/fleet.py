"""The same work for many pods at once: every one gets its own outcome, none waits for or fails with another.

Used by all commands that ask more than one pod. Standard library only.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from workloads.contract.errors import OrchError

T = TypeVar("T")
R = TypeVar("R")

LIMIT = 64
JITTER_S = 0.05
WAKE_S = 0.25


def each(items: Iterable[T], work: Callable[[T], R], *, limit: int = LIMIT) -> list[R | OrchError]:
    """`work` of each item, at most `limit` at the same time; results or errors in the order of `items`.

    Ctrl-C ends the wait at once: what is under way is left to threads that do not keep the program alive.
    """
    todo = list(items)
    results: list[R | OrchError | None] = [None] * len(todo)
    done = threading.Event()
    lock = threading.Lock()
    order = iter(range(len(todo)))
    left = len(todo)

    def worker(jitter_s: float) -> None:
        nonlocal left
        time.sleep(jitter_s)  # several pods may be behind one sshd, which takes few newcomers at once
        while True:
            with lock:
                index = next(order, None)
            if index is None:
                return
            results[index] = _outcome(work, todo[index])
            with lock:
                left -= 1
                if not left:
                    done.set()

    if not todo:
        return []
    count = max(1, min(limit, len(todo)))
    for i in range(count):
        jitter_s = random.uniform(0, JITTER_S) if i else 0.0
        threading.Thread(target=worker, args=(jitter_s,), daemon=True, name=f"fleet-{i}").start()
    while not done.wait(WAKE_S):  # a signal that another thread got is seen when this one wakes
        pass
    return [r for r in results]  # type: ignore[misc]  # every slot is filled


def _outcome(work: Callable[[T], R], item: T) -> R | OrchError:
    try:
        return work(item)
    except OrchError as e:
        return e
    except BaseException as e:  # one pod's trouble is not the others'; the caller shows it as a fault of ours
        return OrchError(
            "E-BUG-001", f"orch itself failed: {type(e).__name__}: {e}",
            fix="run again with --debug and report what it shows",
        )  # fmt: skip
