"""Being told of a change: by a real command, and by a real server on loopback; neither ever holds up a look."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.runs.watchnotify import MAX_WAITING, Notifier
from workloads.contract.errors import UsageError

DOC = {"v": 1, "run": "x", "text": "boom \u202e"}


def test_a_command_gets_json_on_its_stdin_and_nothing_in_its_argv(tmp_path):
    out, said = tmp_path / "told", list[str]()
    script = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read() + repr(sys.argv[1:]))"
    notifier = Notifier(f'{sys.executable} -c "{script}" --flag', said.append)
    notifier.tell(DOC)
    notifier.close()
    text = out.read_text()
    assert json.loads(text[: text.index("\n")]) == DOC and text.endswith("['--flag']") and said == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("false", "false was not told: exit code 1"),
        ("/no/such", "not told: FileNotFoundError"),
        ("sleep 60", "ran longer"),
    ],
)
def test_a_command_that_fails_is_said(command, words):
    said: list[str] = []
    notifier = Notifier(command, said.append, limit_s=0.5)
    notifier.tell(DOC)
    notifier.close()
    assert len(said) == 1 and words in said[0]


def test_a_command_that_hangs_never_holds_up_a_look():
    said: list[str] = []
    notifier = Notifier("sleep 60", said.append, limit_s=0.2)
    began = time.monotonic()
    for _ in range(MAX_WAITING + 50):
        notifier.tell(DOC)
    assert time.monotonic() - began < 30 and any("dropped" in s for s in said)
    notifier.close(0.5)


class Server(http.server.ThreadingHTTPServer):
    answers: list[int]
    got: list[tuple[str, bytes]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, body))
        code = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.answers, made.got = [], []
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(
    ("answers", "tries", "said_code"),
    [([200], 1, ""), ([500, 200], 2, ""), ([503] * 3, 3, "HTTP 503"), ([404], 1, "HTTP 404"), ([302], 1, "HTTP 302")],
)
def test_a_url_is_posted_to_with_few_retries_and_never_shown(server, answers, tries, said_code):
    server.answers = list(answers)
    said: list[str] = []
    notifier = Notifier(f"http://127.0.0.1:{server.server_port}/hook/sEcReT", said.append, pauses_s=(0.05, 0.05))
    notifier.tell(DOC)
    notifier.close()
    assert len(server.got) == tries and all(path == "/hook/sEcReT" for path, _ in server.got)
    assert json.loads(server.got[-1][1]) == DOC
    assert (said_code in said[0] if said_code else said == []) and "sEcReT" not in "".join(said)


def test_a_server_that_is_not_there_is_said_without_the_url():
    said: list[str] = []
    notifier = Notifier("http://127.0.0.1:9/hook/sEcReT", said.append, pauses_s=(0.05,))
    notifier.tell(DOC)
    notifier.close()
    assert len(said) == 1 and "127.0.0.1 was not told" in said[0] and "sEcReT" not in said[0]


@pytest.mark.parametrize("target", ["ftp://x/y", "file:///etc/passwd", "http:///x", "'", "  "])
def test_what_is_neither_is_refused_at_once(target):
    with pytest.raises(UsageError, match="--notify") as e:
        Notifier(target, lambda _: None)
    assert e.value.code == "E-WATCH-002" and "passwd" not in e.value.render()
