"""Standard output and error that survive a full disk: what cannot be written is lost and counted, never raised.

A rank's output is a file on the run's disk. Without this a log line, or the very warning that a checkpoint could not be
saved, ends the training for want of the same bytes. Only streams that Python itself made and that are plain files are
replaced. Standard library only. Called by `Run`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import Any

REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})


class LossyFile(io.FileIO):
    """A file whose `write` always succeeds; `lost` counts the bytes that the disk refused."""

    lost = 0

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view:
                view = view[super().write(view) or 0 :]
        except OSError as e:
            if e.errno not in REFUSALS:
                raise
            self.lost += len(view)
        return size


def survive_full_disk() -> None:
    """Make sys.stdout and sys.stderr lose what the disk refuses. May be called twice."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper) and _is_file(stream):
            stream.flush()
            setattr(sys, name, _lossy(stream))


def _is_file(stream: io.TextIOWrapper) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or no file below it
        return False


def _lossy(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = LossyFile(stream.fileno(), "w", closefd=False)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,  # as Python does it for its own unbuffered streams
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
