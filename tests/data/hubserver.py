"""A real HTTP server that answers as the hub does for one repository on disk, and misbehaves when it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.data.corpora import write_parquet

COMMIT, OTHER = "a" * 40, "b" * 40
REPO = "own/pages"
CARD = {
    "configs": [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
        {"config_name": "sample", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
    ]
}


def write_repository(root: Path) -> Path:
    write_parquet(root / "sample" / "10BT")
    write_parquet(root / "data" / "one", count=300)
    (root / "README.md").write_text(f"---\n{yaml.safe_dump(CARD)}---\n# Pages\n")
    return root


class Hub(ThreadingHTTPServer):
    """`faults`: what the next requests for files meet, one each; `always`: what all do. `commit`: what `main` is.

    `card`: the data set's, as the hub tells it.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults: deque[str] = deque()
        self.always = ""
        self.commit = COMMIT
        self.card: dict[str, Any] = CARD
        self.ended = threading.Event()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self) -> str:
        if self.always:
            return self.always
        try:
            return self.faults.popleft()
        except IndexError:
            return ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{path} {self.headers.get('Range') or ''}".strip())
        if path == f"/api/datasets/{REPO}" or path.startswith(f"/api/datasets/{REPO}/revision/"):
            if self._misbehave():
                return
            self._json(self._listing())
        elif found := re.fullmatch(f"/datasets/{REPO}/resolve/({COMMIT}|{OTHER})/(.+)", path):
            self._file(self.server.root / found[2])
        else:
            self.send_error(404)

    def _listing(self) -> dict[str, Any]:
        files = sorted(p for p in self.server.root.rglob("*") if p.is_file())
        rows = [
            {"rfilename": str(p.relative_to(self.server.root)), "size": p.stat().st_size, "blobId": f"{k:040x}"}
            for k, p in enumerate(files)
        ]
        about = {"id": REPO, "sha": self.server.commit, "tags": [], "downloads": 0}
        return {**about, "siblings": rows, "cardData": self.server.card}

    def _misbehave(self) -> bool:
        match self.server.fault():
            case "stall":
                self.server.ended.wait(60)
                self.close_connection = True
                return True
            case "429":
                self.send_response(429)
                self.send_header("Retry-After", "1")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True
            case "500" | "404" as status:
                self.send_error(int(status))
                return True
            case _:
                return False

    def _file(self, path: Path) -> None:
        data = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        low, high = (int(found[1]), min(int(found[2]) + 1, len(data))) if found else (0, len(data))
        fault = self.server.faults[0] if self.server.faults and not self.server.always else self.server.always
        if fault in ("empty", "cut"):
            self.server.fault()
        elif self._misbehave():
            return
        body = b"" if fault == "empty" else data[low:high]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {low}-{high - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.wfile.flush()
            self.close_connection = True

    def _json(self, row: dict[str, Any]) -> None:
        body = json.dumps(row).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr: the tests read that."""


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        hub.shutdown()
        thread.join(60)
        hub.server_close()
