"""Was this rank asked to stop? `.HALT` in the run directory, or SIGTERM. A latch: taking the file away changes nothing.

A regular file owned by us or by root counts, whatever it holds; symlinks, FIFOs and other people's files do not.
This is one rank's own view: ranks agree on the step by `workloads.runtime.reduction`. Standard library only.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from pathlib import Path
from types import FrameType

from workloads.runtime import stacks
from workloads.runtime.rankenv import RankEnv

LOOK_EVERY_S = 0.5


def is_halt_request(path: Path) -> bool:
    """True for a regular file owned by our effective uid or root."""
    try:
        st = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(st.st_mode) and st.st_uid in (os.geteuid(), 0)


class HaltWatch:
    """`flag` turns true within half a second of `.HALT`, at once on SIGTERM, and never back."""

    def __init__(self, env: RankEnv) -> None:
        self._env = env
        self._seen = threading.Event()
        self.asked_at: float | None = None
        """monotonic seconds of the first request that was seen"""
        self._handling = False
        threading.Thread(target=self._watch, name="orch-halt", daemon=True).start()

    @property
    def flag(self) -> bool:
        return self._seen.is_set()

    def look(self) -> bool:
        """As `flag`, but looks at the file now."""
        if is_halt_request(self._env.run.halt):
            self._ask()
        return self._seen.is_set()

    def handle_sigterm(self) -> None:
        """From now on SIGTERM dumps the stacks and asks for a halt. In the main thread only; elsewhere nothing."""
        if self._handling or threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)

        def on_sigterm(signum: int, frame: FrameType | None) -> None:
            self._ask()
            stacks.dump(self._env, "SIGTERM")
            if callable(before):
                before(signum, frame)

        signal.signal(signal.SIGTERM, on_sigterm)
        self._handling = True

    def _ask(self) -> None:
        if self.asked_at is None:
            self.asked_at = time.monotonic()
        self._seen.set()

    def _watch(self) -> None:
        while not self.look():
            self._seen.wait(LOOK_EVERY_S)
