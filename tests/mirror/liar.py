"""A hostile pod: a transport whose process speaks the wire protocol and says what the test wants it to say."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pods.pod import FarPod
from pods.remote.wire import GREETING, VERSION, pack
from pods.transport.base import Process, Result
from tests.hostile.speaker import Answering, Speaker

Lie = Answering


class Liar:
    name = "liar"

    def __init__(self, lie: Lie) -> None:
        self.lie = lie

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        return Result(tuple(argv), 0, "", "")

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        hello = {"v": VERSION, "home": "/root/.orch", "pid": 1, "now": 1.0}
        return Speaker(f"{GREETING} {VERSION}\n".encode() + pack(hello), self.lie)

    def put(self, data: bytes, path: PurePosixPath, *, timeout_s: float, mode: int = 0o600) -> None:
        return

    def close(self) -> None:
        return


def liar(lie: Lie) -> FarPod:
    return FarPod("liar", Liar(lie))


def says(fields: dict[str, Any], data: bytes = b"") -> Lie:
    return lambda message, _: pack({"ok": True, "fields": fields}, data)


def summed(files: object, data: bytes) -> object:
    """Rows with the right checksum of what they claim: what is wrong with them is something else."""
    if not isinstance(files, list):
        return files
    rows, at = [], 0
    for row in files:
        if isinstance(row, list) and len(row) == 6:
            length = row[3] if type(row[3]) is int and 0 <= row[3] < 1 << 40 else 0
            row = [*row, zlib.crc32(data[at : at + length])]
            at += length
        rows.append(row)
    return rows


def sync_of(run: str, files: object, *, data: bytes = b"", **more: Any) -> Lie:
    told = {"files": summed(files, data), "gone": more.pop("gone", []), "observed": more.pop("observed", {})}
    return says({"now": 5.0, "keeper": True, "more": False, "listed": [], "runs": {run: told}, **more}, data)


def raw_json(text: str) -> Lie:
    body = text.encode()
    return lambda message, _: struct.pack(">II", len(body), 0) + body


def parsed(data: bytes) -> Any:
    return json.loads(data) if data else {}
