"""What keeps a keeper from its work, by whose trouble it is: one run's, or the keeper's own.

The one seam between runs: whatever is done for a run is done inside `Troubles.of`, so that what is wrong with one run
is told as its trouble and harms no other. Told in keeper.log when it is new and then once a minute, and shown to
whoever asks the keeper (`orch status` of a run that waits). Used by the keeper's loop, its view of the runs, its guard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workloads.contract.errors import OrchError, escape

KEEPER = ""
"""Whose a trouble is that concerns no run alone."""
SAY_AGAIN_S = 60.0
MAX_CHARS = 600


@dataclass
class Trouble:
    what: str
    since: float  # Unix seconds
    times: int = 0
    said: float = 0.0  # monotonic seconds


class Troubles:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._open: dict[tuple[str, str], Trouble] = {}  # by whose and which part of the work
        self._lock = threading.Lock()

    @contextmanager
    def of(self, whose: str, part: str) -> Iterator[None]:
        """One part of the work for one run (or `KEEPER`). What it raises is noted and goes no further."""
        try:
            yield
        except Exception as e:  # the other runs, and the next look, must not suffer for it
            self.note(whose, part, words_of(e))
        else:
            self.clear(whose, part)

    def view(self) -> dict[str, dict[str, Any]]:
        """{run id or "": {what, since, times}}: the oldest open trouble of each. `since`: Unix seconds."""
        with self._lock:
            found: dict[str, dict[str, Any]] = {}
            for (whose, _), t in sorted(self._open.items(), key=lambda item: item[1].since):
                found.setdefault(whose, {"what": t.what, "since": t.since, "times": t.times})
            return found

    def forget(self, there: Collection[str]) -> None:
        """Drop what concerns runs that are not `there` any more."""
        with self._lock:
            for key in [k for k in self._open if k[0] != KEEPER and k[0] not in there]:
                del self._open[key]

    def note(self, whose: str, part: str, what: str) -> None:
        """Something is wrong with a part of the work."""
        now = time.monotonic()
        with self._lock:
            t = self._open.setdefault((whose, part), Trouble(what, time.time()))
            fresh, t.what, t.times = t.times == 0 or t.what != what, what, t.times + 1
            due = fresh or now - t.said >= SAY_AGAIN_S
            if due:
                t.said = now
            times = t.times
        if due:
            self._say(f"{whose or 'the keeper'}: {part}: {what}" + (f" ({times} times so far)" * (times > 1)))

    def clear(self, whose: str, part: str) -> None:
        """That part was done; nothing is said where nothing was wrong."""
        with self._lock:
            gone = self._open.pop((whose, part), None)
        if gone is not None:
            self._say(f"{whose or 'the keeper'}: {part} works again")


def words_of(e: Exception) -> str:
    """An error in one line for people."""
    return escape(e.what if isinstance(e, OrchError) else f"{type(e).__name__}: {e}", MAX_CHARS)
