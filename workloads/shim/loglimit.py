"""The limit on a rank's log: beyond it the oldest output is given back to the disk, and the newest stays.

The rank writes straight to its file, so nothing can be held back from it; what is too old is punched out of the file
instead (fallocate(2), a hole). Sizes and offsets stay as they were, for readers that go by them: `orch logs` and the
copy at home pass over holes. The first 1 MiB stays too, and behind it a line says how much is missing.

Two limits: `logs.max_gb` of the job, and a disk with less than 5 % (or max_gb, if that is less) left, where a log is
cut down to what a person needs to see how it ended. Every cut is a line in guard.jsonl, which the supervisor tells as
an event. Standard library only; called by `care` twice a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable

from workloads.contract.files import append_line, solid_from
from workloads.contract.records import ShimOrder
from workloads.contract.rundir import RunDir

HEAD_BYTES = 1 << 20
MARK_BYTES = 4096
KEEP_BYTES = 64 << 20
"""Of the newest output, on a disk that is nearly full."""
LOW_SHARE = 0.05
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 60.0
BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def punch(fd: int, start: int, length: int) -> None:
    """Give these bytes back; they read as zeros then. OSError where the file system has no holes."""
    flags = _KEEP_SIZE | _PUNCH_HOLE
    if _libc.fallocate(fd, flags, ctypes.c_longlong(start), ctypes.c_longlong(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def cut_to(size: int, kept: int) -> int:
    """Up to which byte a log of `size` bytes is dropped, so that with its head about `kept` stay: whole blocks."""
    newest = max(kept - HEAD_BYTES - MARK_BYTES, kept // 2)
    return max((size - newest) // BLOCK * BLOCK, HEAD_BYTES + MARK_BYTES)


class LogLimit:
    """One rank's log, looked at again and again. Never raises."""

    def __init__(self, order: ShimOrder, run: RunDir, say: Callable[[str], None]) -> None:
        self.order, self.run, self._say = order, run, say
        self.path = run.rank_log(order.rank)
        self.dropped = 0
        """bytes of it that were given back"""
        self._upto = HEAD_BYTES + MARK_BYTES
        self._next = self._next_tell = 0.0
        self._untold = ""
        self._refused = False

    def look(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if now < self._next or self._refused:
            return
        self._next = now + LOOK_EVERY_S
        try:
            self._look()
        except OSError as e:
            self._refused = True
            self._tell(f"the log of rank {self.order.rank} cannot be limited on this disk: {e.strerror}", "nothing")
        if self._untold and now >= self._next_tell:
            self._next_tell = now + TELL_EVERY_S
            self._tell(self._untold, f"dropped {_mib(self.dropped)} MiB")
            self._untold = ""

    def finish(self) -> None:
        """The rank has ended: what was not told yet."""
        if self._untold:
            self._tell(self._untold, f"dropped {_mib(self.dropped)} MiB")

    def _look(self) -> None:
        try:
            st = self.path.lstat()
        except FileNotFoundError:
            return
        held, limit = st.st_blocks * 512, self.order.log_max_bytes
        if held > limit:
            self._drop(st.st_size, limit - limit // 8, f"its log holds {_mib(held)} MiB (limit {_mib(limit)} MiB)")
            return
        disk = os.statvfs(self.path)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        floor = min(int(total * LOW_SHARE), limit)
        if free < floor and held > 2 * KEEP_BYTES:
            why = f"{_mib(free)} MiB of the disk are left (limit {_mib(floor)} MiB)"
            self._drop(st.st_size, max(held // 2, KEEP_BYTES), why)

    def _drop(self, size: int, kept: int, why: str) -> None:
        upto, start = cut_to(size, kept), HEAD_BYTES + MARK_BYTES
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            self._upto = max(self._upto, solid_from(fd, size))  # an attempt before this one may have dropped some
            if upto <= self._upto:
                return
            punch(fd, start, upto - start)
            self.dropped += upto - self._upto
            self._upto = upto
            text = f"[orch: {upto - HEAD_BYTES} bytes of output were dropped here: logs.max_gb, or a disk nearly full]"
            os.pwrite(fd, b"\n" + text.encode().ljust(MARK_BYTES - 2) + b"\n", HEAD_BYTES)
        finally:
            os.close(fd)
        rank, mib = self.order.rank, _mib(self.dropped)
        self._untold = f"the oldest output of rank {rank} was dropped, {mib} MiB so far: {why}"

    def _tell(self, why: str, did: str) -> None:
        self._say(why)
        row = {
            "v": 1, "ts": time.time(), "rule": "log_limit", "why": why, "rank": self.order.rank, "did": did,
            "pod": self.order.pod, "limit_mib": _mib(self.order.log_max_bytes),
        }  # fmt: skip
        with contextlib.suppress(OSError):  # the disk that is full: it is in the log of the shim, or nowhere
            append_line(self.run.guard_log, row)


def _mib(size: int) -> int:
    return size >> 20
