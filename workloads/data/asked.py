"""What one process of a pod asked a hub, the others read: listings, footers. Never the bytes of documents.

    $ORCH_HOME/cache/hub/<sha256 of the question>.json      the answer: of a commit, so it never changes
    .../<same>.lock                                         held (flock) by whoever asks; a death lets go of it
    .../<same>.failed                                       when, and why, the last one who asked got no answer

Who finds the lock held waits, and takes the answer, or the failure, of the one who holds it: ranks that ask one after
the other would each wait for the same dead server. Who waited too long, or cannot write there, asks for himself, and
says so. Called by `workloads.data.opening` and `workloads.data.hub`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from workloads.contract.errors import escape
from workloads.contract.files import atomic_write_json, read_bytes_bounded, try_read_json
from workloads.contract.rundir import OrchHome
from workloads.data.blocks import SourceGone

VERSION = 1
MAX_ANSWER_BYTES = 256 << 20
LOOK_S = 0.1
T = TypeVar("T")


class Once(Protocol):
    """`read` of what `ask` gives, or of what another process was given; both may raise."""

    def __call__(self, ask: Callable[[], Any], read: Callable[[Any], T], /) -> T: ...


def at_once(ask: Callable[[], Any], read: Callable[[Any], T], /) -> T:
    return read(ask())


class OncePerPod:
    """Questions about one commit of one data set. `wait_s`: how long another's asking is waited for."""

    def __init__(self, about: Sequence[str], source: str, wait_s: float, folder: Path | None = None) -> None:
        self._about, self._source, self._wait_s = list(about), source, wait_s
        self._folder = folder or OrchHome.from_env().cache / "hub"

    def ask(self, question: Sequence[str], ask: Callable[[], Any], read: Callable[[Any], T], more_s: float = 0.0) -> T:
        """`read` of the answer that is kept, or of what `ask` gives (JSON), kept for the others. Their errors.

        `read` raises ValueError for what is no answer: one that is kept is then asked for again.
        """
        path = self._path(question)
        if (known := self._kept(path, read)) is not None:
            return known[0]
        began, waited = time.time(), False
        with contextlib.ExitStack() as held:
            try:
                waited = held.enter_context(self._lock(path.with_suffix(".lock"), self._wait_s + more_s))
            except OSError as e:
                self._say(f"{question[0]}: asked for by this process itself: {e.strerror or e}")
                return read(ask())
            if (known := self._kept(path, read)) is not None:
                return known[0]
            if waited:
                self._failed_since(path.with_suffix(".failed"), began)
            return self._answer(question, ask, read)

    def keep(self, question: Sequence[str], row: Any) -> None:
        """An answer that somebody got anyway."""
        path = self._path(question)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write_json(path, {"v": VERSION, "about": self._about, "answer": row})
        except OSError as e:
            self._say(f"the hub's answer is not kept for other processes: {e.strerror or e}")

    def _path(self, question: Sequence[str]) -> Path:
        name = hashlib.sha256(json.dumps([VERSION, *self._about, *question]).encode()).hexdigest()
        return self._folder / f"{name}.json"

    def _answer(self, question: Sequence[str], ask: Callable[[], Any], read: Callable[[Any], T]) -> T:
        try:
            row = ask()
        except SourceGone as e:
            with contextlib.suppress(OSError):
                failed = self._path(question).with_suffix(".failed")
                atomic_write_json(failed, {"v": VERSION, "ts": time.time(), "why": e.why})
            raise
        answer = read(row)
        self.keep(question, row)
        return answer

    def _failed_since(self, path: Path, began: float) -> None:
        """SourceGone when the one who was waited for got no answer."""
        row = try_read_json(path) or {}
        ts = row.get("ts")
        if isinstance(ts, int | float) and ts >= began:
            raise SourceGone(self._source, f"{escape(str(row.get('why')), 300)} (asked by another process of this pod)")

    def _kept(self, path: Path, read: Callable[[Any], T]) -> tuple[T] | None:
        try:
            row = json.loads(read_bytes_bounded(path, MAX_ANSWER_BYTES))
            return (read(row["answer"]),) if row["v"] == VERSION and row["about"] == self._about else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            self._say(f"{path.name} cannot be used, and is asked for again: {type(e).__name__}: {e}")
            return None

    @contextlib.contextmanager
    def _lock(self, path: Path, wait_s: float) -> Iterator[bool]:
        """Whether it was waited for. TimeoutError (an OSError) after `wait_s`, and OSError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            waited, deadline = False, time.monotonic() + wait_s
            while not _taken(fd):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has been asking for more than {wait_s:.0f} s")
                waited = True
                time.sleep(LOOK_S)
            yield waited
        finally:
            os.close(fd)

    def _say(self, text: str) -> None:
        print(f"warning: data: {self._source}: {escape(text, 300)}", file=sys.stderr, flush=True)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
