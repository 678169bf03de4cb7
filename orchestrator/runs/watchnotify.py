"""Telling somebody of a change: a command that gets it as JSON on its standard input, or a POST to an http(s) URL.

One thread, a bounded queue, every try with a limit: a command that hangs or a server that does not answer never holds
up a look. What could not be told is counted and said. The URL may hold a token: only its host is ever shown.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from workloads.contract.errors import UsageError

LIMIT_S = 10.0
PAUSES_S = (1.0, 5.0)
MAX_WAITING = 200
Say = Callable[[str], None]


@dataclass
class Notifier:
    """`target`: a command or a URL, as `--notify` takes it. UsageError E-WATCH-002 for one that is neither."""

    target: str
    say: Say
    limit_s: float = LIMIT_S
    pauses_s: tuple[float, ...] = PAUSES_S
    _queue: queue.Queue[Mapping[str, Any] | None] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _dropped: int = 0

    def __post_init__(self) -> None:
        self._url = self.target.strip() if "://" in self.target.split(" ")[0] else ""
        self._argv = [] if self._url else _argv(self.target)
        if self._url:
            _check_url(self._url)
        self.name = urlsplit(self._url).hostname or "?" if self._url else self._argv[0]
        self._thread = threading.Thread(target=self._work, name="orch-notify", daemon=True)
        self._thread.start()

    def tell(self, document: Mapping[str, Any]) -> None:
        """Never waits. A document for which there is no room is dropped, and that is said once."""
        try:
            self._queue.put_nowait(document)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                self.say(f"note: {self.name} takes too long; changes are dropped from what it is told")

    def close(self, wait_s: float = 2 * LIMIT_S) -> None:
        """Give what waits a bounded time."""
        try:
            self._queue.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)

    def _work(self) -> None:
        while (document := self._queue.get()) is not None:
            try:
                data = json.dumps(document, ensure_ascii=True, default=str).encode() + b"\n"
                problem = self._try(data)
            except Exception as e:  # the top of a thread: whatever a server or command brings about is told
                problem = type(e).__name__
            if problem:
                self.say(f"note: {self.name} was not told: {problem}")

    def _try(self, data: bytes) -> str:
        """What went wrong with the last try; "" when it was told."""
        problem = ""
        for pause_s in (*self.pauses_s, None) if self._url else (None,):
            problem, again = self._post(data) if self._url else (self._run(data), False)
            if not problem or not again or pause_s is None:
                break
            time.sleep(pause_s)
        return problem

    def _post(self, data: bytes) -> tuple[str, bool]:
        """(problem, whether another try may help)."""
        import urllib.error
        import urllib.request

        headers = {"Content-Type": "application/json", "User-Agent": "orch-watch"}
        request = urllib.request.Request(self._url, data, headers, method="POST")
        try:
            with _direct().open(request, timeout=self.limit_s) as answer:
                answer.read(1024)
        except urllib.error.HTTPError as e:
            return f"HTTP {e.code}", e.code >= 500 or e.code == 429
        except (OSError, ValueError) as e:
            return type(e).__name__, True  # its text may hold the URL
        return "", False

    def _run(self, data: bytes) -> str:
        process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(data, timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"it ran longer than {self.limit_s:g} s"
        except BrokenPipeError:  # it does not want to know
            process.wait(self.limit_s)
        return f"exit code {process.returncode}" if process.returncode else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """The command and what it started in its own session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait(5.0)


def _argv(text: str) -> list[str]:
    try:
        argv = shlex.split(text)
    except ValueError as e:
        raise UsageError("E-WATCH-002", f"--notify is no command: {e}", where="--notify") from e
    if not argv:
        raise UsageError("E-WATCH-002", "--notify is empty", where="--notify", fix="--notify ./tell-me")
    return argv


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            "E-WATCH-002", "--notify takes an http or https URL, or a command", where="--notify",
            value=f"{parts.scheme}://...", fix="ORCH_NOTIFY=https://... orch watch   (keeps it out of `ps`)",
        )  # fmt: skip


def _direct() -> Any:
    """An opener that follows no redirect: a token in a URL is for one host. Imported late: it costs 50 ms."""
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: Any, **more: Any) -> None:
            return None

    return urllib.request.build_opener(NoRedirect())
