"""events.jsonl and status.json of one run: written by the supervisor that holds the lock, and by nobody else.

An event is on disk before what it tells is acted upon; status.json is a picture of it for readers. A full disk delays
both and ends nothing: events wait in memory, in order, and are written at the next try.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.supervisor.memory import Memory
from workloads.contract.errors import escape
from workloads.contract.files import LineWriter, atomic_write_json, dump_json, read_tail, try_read_json
from workloads.contract.records import Event, Status, as_wire, from_wire
from workloads.contract.rundir import RunDir

log = logging.getLogger(__name__)

MAX_EVENTS_BYTES = 64 << 20
MAX_EVENT_BYTES = 1 << 20
MAX_WAITING = 1000
STATUS_EVERY_S = 1.0
WHO = "supervisor"


def parse_events(raw: bytes) -> list[Event]:
    """The good lines, oldest first; torn and foreign ones are skipped."""
    return [event for event in map(_event, raw.split(b"\n")) if event is not None]


def read_events(path: Path, max_bytes: int = MAX_EVENTS_BYTES) -> Iterator[Event]:
    """As `parse_events`, of the end of a file, a line in memory at a time; lines over 1 MiB are none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    with os.fdopen(fd, "rb") as f:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            return
        f.seek(max(st.st_size - max_bytes, 0))
        while line := f.readline(MAX_EVENT_BYTES):
            event = _event(line)
            if event is not None:
                yield event


def _event(line: bytes) -> Event | None:
    try:
        row = json.loads(line)
        row["frm"] = row.pop("from", None)
        event = from_wire(Event, row)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    texts = (event.who, event.what, event.why, event.to or "")
    numbers_ok = type(event.seq) is int and type(event.attempt) is int and isinstance(event.ts, int | float)
    return event if numbers_ok and all(isinstance(t, str) for t in texts) and isinstance(event.data, dict) else None


def _writable(event: Event) -> tuple[Event, bytes]:
    """The event and its line; where its data cannot be written as JSON, one that says so in their place."""
    try:
        return event, dump_json(event.wire())
    except (ValueError, TypeError, RecursionError) as e:
        log.warning("the data of the event `%s` cannot be written: %s", event.what, e)
        told = dataclasses.replace(event, data={"unwritable": escape(e)})
        return told, dump_json(told.wire())


@dataclass
class Journal:
    run: RunDir
    clock: Callable[[], float] = time.time
    memory: Memory = field(default_factory=Memory)
    _seq: int = 0
    _waiting: list[bytes] = field(default_factory=list)
    trouble: str = ""  # why the last write was refused
    _writer: LineWriter | None = None
    _inode: tuple[int, int] = (0, 0)
    _written: Status | None = None
    _written_at: float = 0.0

    def load(self) -> None:
        """Fold what is on disk. Attempts that only left a directory or an epoch count, so no number is used twice."""
        for event in read_events(self.run.events):
            self._seq = max(self._seq, event.seq + 1)
            self.memory = self.memory.apply(event)
        newest = max(self.memory.attempt, _epoch(self.run), *_attempts(self.run), 0)
        if newest > self.memory.attempt:
            log.warning("attempt %d is on disk, the events know %d", newest, self.memory.attempt)
            self.memory = dataclasses.replace(self.memory, attempt=newest)

    def event(
        self,
        what: str,
        why: str = "",
        *,
        to: str | None = None,
        data: Mapping[str, Any] | None = None,
        attempt: int | None = None,
    ) -> None:
        """Write one event and fold it. Never raises: what cannot be written yet waits in memory, and data that could
        never be written are left out of both."""
        frm = self.memory.state.value if to is not None and self.memory.state else None
        number = self.memory.attempt if attempt is None else attempt
        event, line = _writable(Event(self._seq, self.clock(), number, WHO, what, why, frm, to, dict(data or {})))
        self._seq += 1
        self.memory = self.memory.apply(event)
        self._waiting = [*self._waiting[-MAX_WAITING:], line]
        self.flush()

    def once(self, key: str, why: str, **data: Any) -> None:
        """A note that is made once in the life of the run."""
        if key not in self.memory.told:
            self.event("note", why, data={"once": key, **data})

    def flush(self) -> bool:
        """Write what waits. False when the disk refuses."""
        try:
            while self._waiting:
                self._open().write(self._waiting[0])
                self._waiting.pop(0)
        except OSError as e:
            self._refused("an event", e)
            return False
        return True

    def _open(self) -> LineWriter:
        """The file as it lies there now: one that was kept open while its directory went away would take lines that
        nobody reads."""
        if self._writer is not None and _inode(self.run.events) == self._inode:
            return self._writer
        self._close()
        self._writer = LineWriter(self.run.events)
        self._inode = _inode(self.run.events)
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _refused(self, what: str, error: OSError) -> None:
        self._close()
        text = error.strerror or type(error).__name__
        if text != self.trouble:
            log.warning("%s could not be written: %s", what, error)
        self.trouble = text

    def status(self, status: Status, now: float) -> None:
        """Write status.json: at once when more than figures changed, else at most once a second."""
        old = self._written
        news = old is None or (old.state, old.reason, old.attempt, old.behind, old.exit_codes, old.restarts) != (
            status.state, status.reason, status.attempt, status.behind, status.exit_codes, status.restarts
        )  # fmt: skip
        if not news and now - self._written_at < STATUS_EVERY_S:
            return
        try:
            atomic_write_json(self.run.status, as_wire(status), durable=news)
        except OSError as e:
            self._refused(self.run.status.name, e)
            return
        self._written, self._written_at, self.trouble = status, now, ""


def _inode(path: Path) -> tuple[int, int]:
    try:
        st = path.lstat()
    except FileNotFoundError:
        return 0, 0
    return st.st_dev, st.st_ino


def _attempts(run: RunDir) -> list[int]:
    try:
        names = [p.name for p in run.ranks.iterdir()]
    except OSError:
        return []
    return [int(n[1:]) for n in names if n[:1] == "a" and n[1:].isascii() and n[1:].isdigit()]


def _epoch(run: RunDir) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(read_tail(run.epoch, 32))
    return 0


def submission(run: RunDir) -> tuple[int, str]:
    """(n, why) of the keeper's last submission; (0, "") when it left none."""
    row = try_read_json(run.submissions) or {}
    n, why = row.get("n"), row.get("why")
    return (n if type(n) is int else 0, why if isinstance(why, str) else "")
