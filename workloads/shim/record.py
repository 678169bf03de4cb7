"""What the shim writes: the rank's record, and one short line an occurrence in its own log.

A full disk kills no shim: a log line is dropped, a record is tried again for a bounded time.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from workloads.contract.errors import escape
from workloads.contract.files import LineWriter, atomic_write_json, try_read_json
from workloads.contract.records import RankRecord, as_wire
from workloads.contract.rundir import UTC_FORMAT

RETRY_S = 2.0
FIRST_RECORD_S = 30.0
LAST_RECORD_S = 600.0
MAX_LINE_CHARS = 500


class ShimLog:
    """`logs/shim_rank<k>.log`. A line that does not fit on the disk is lost, and nothing else happens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: LineWriter | None = None

    def say(self, text: str) -> None:
        line = f"{time.strftime(UTC_FORMAT, time.gmtime())} {escape(text, MAX_LINE_CHARS)}\n"
        with contextlib.suppress(OSError):
            if self._writer is None:
                self._writer = LineWriter(self._path)
            self._writer.write(line.encode(errors="replace"))


def is_recorded(path: Path) -> bool:
    """True when a shim has started this rank before, ended or not: a rank is started once an attempt."""
    return try_read_json(path) is not None


def write_patiently(path: Path, record: RankRecord, log: ShimLog, patience_s: float) -> None:
    """Write the record whole, trying again every 2 s. OSError of the last try when `patience_s` has passed."""
    deadline = time.monotonic() + patience_s
    told = False
    while True:
        try:
            atomic_write_json(path, as_wire(record))
        except OSError as e:
            if time.monotonic() + RETRY_S > deadline:
                raise
            if not told:
                log.say(f"the record cannot be written, trying for {patience_s:.0f} s: {e}")
                told = True
            time.sleep(RETRY_S)
        else:
            return


def how(record: RankRecord) -> str:
    """How a rank ended, in a few words for the log."""
    if record.error:
        return f"{record.cause}: {record.error}"
    ending = f"exit code {record.exit_code}" if record.signal is None else f"signal {record.signal}"
    return f"{record.cause}, {ending}{', out of memory' if record.oom else ''}"
