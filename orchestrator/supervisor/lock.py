"""`supervisor.lock`: whoever holds it is the run's supervisor and its only writer. Standard library only."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from workloads.contract.errors import ConflictError

LOCK_WAIT_S = 15.0


def take_lock(path: Path, wait_s: float = LOCK_WAIT_S) -> int:
    """The descriptor that holds supervisor.lock. ConflictError when somebody still holds it after `wait_s`.

    A predecessor that was killed frees it at once; a keeper that looks holds it for an instant.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            os.close(fd)
            raise ConflictError(
                "E-SUP-001", "another supervisor of this run lives", where=str(path), fix="wait until it has ended"
            ) from None
        return fd
