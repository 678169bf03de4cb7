"""The Jobs API as the keeper speaks it, against a real HTTP server that answers as Ray 2.60 does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pods.keeper.jobsapi import JobsApi, JobsApiError

TRACEBACK = "Traceback (most recent call last):\n" + '  File "job_head.py", line 419, in submit_job\n    ^^^^^^^\n' * 30
TAKEN = TRACEBACK + "ValueError: Job with submission_id r.1 already exists. Please use a different submission_id.\n"
NO_AGENT = TRACEBACK + "RuntimeError: No available agent to submit job, please try again later.\n"


class Answer(BaseHTTPRequestHandler):
    text = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.text else 200)
        self.end_headers()
        self.wfile.write(self.text.encode() or b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[JobsApi]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield JobsApi(server.server_port, "token")
        server.shutdown()


def test_an_id_that_was_used_before_is_known(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first try was lost: asked again, Ray says that it has the job, at the end of 2 kB."""
    monkeypatch.setattr(Answer, "text", TAKEN)
    assert api.submit("r.1", "true", {}) is False
    monkeypatch.setattr(Answer, "text", "")
    assert api.submit("r.1", "true", {}) is True


def test_another_refusal_is_an_error_that_says_why(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "text", NO_AGENT)
    with pytest.raises(JobsApiError, match="No available agent") as e:
        api.submit("r.1", "true", {})
    assert e.value.status == 500
