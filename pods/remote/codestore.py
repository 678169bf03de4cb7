"""The snapshots that are in a pod's store of code, as files, and the lock of the store. Used by `pods.remote.code`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pods.remote.manifest import Entry, is_id, parse, snapshot_id, to_rows
from workloads.contract.errors import ConflictError, RemoteError
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.rundir import OrchHome

MAX_MANIFEST_BYTES = 64 << 20
LOCK_S = 20.0


def file_of(home: OrchHome, ident: str, suffix: str) -> Path:
    if not is_id(ident):
        raise RemoteError("E-CODE-007", "that is no snapshot's id", value=ident)
    return home.code_store / f"{ident}{suffix}"


def keep(home: OrchHome, ident: str, entries: Sequence[Entry], *, whole: bool) -> None:
    """Write the snapshot down: as one that is here, or as one on its way."""
    path = file_of(home, ident, ".json" if whole else ".offer")
    if read(path) != entries:
        atomic_write_json(path, {"v": 1, "rows": to_rows(entries)}, durable=whole)
    if whole:
        file_of(home, ident, ".offer").unlink(missing_ok=True)


def load(home: OrchHome, ident: str, *, offered: bool = False) -> tuple[Entry, ...] | None:
    """The rows of a snapshot that is here, or was offered; this counts as a use of it. None also for a torn file."""
    for suffix in (".offer", ".json") if offered else (".json",):  # it becomes .json before .offer goes
        path = file_of(home, ident, suffix)
        entries = read(path)
        if entries is not None and snapshot_id(entries) == ident:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
            return entries
    return None


def read(path: Path) -> tuple[Entry, ...] | None:
    try:
        return parse(read_json(path, MAX_MANIFEST_BYTES).get("rows"))
    except (OSError, ValueError, RemoteError):
        return None


@contextlib.contextmanager
def locked(home: OrchHome, how: int) -> Iterator[None]:
    """Shared by whoever uses the store, alone for who removes from it. ConflictError after 20 s."""
    home.code_store.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(home.code_store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + LOCK_S
    try:
        while True:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        "E-CODE-014", "the store of code on the pod is being tidied or used",
                        where=str(home.code_store), fix="try again",
                    ) from None  # fmt: skip
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)
