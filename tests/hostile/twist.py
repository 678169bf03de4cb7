"""A pod that carries out every operation as it should, and lies in one place of what it says.

`Twisted` stands where `SshTransport` does: its process speaks `pods.remote.wire` and calls the real `dispatch` on a
home of its own. `twist(op, fields, data)` may change any answer before it is sent.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pods.remote.dispatch import Answer, dispatch
from pods.remote.wire import GREETING, VERSION, error_row, pack
from pods.transport.base import Process, Result
from pods.transport.local import LocalTransport
from tests.hostile.speaker import Speaker
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome

Path_ = tuple[Any, ...]
Operation = Callable[[OrchHome, Mapping[str, Any], bytes], Answer]


def leaves(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The way to everything in a JSON document: containers too, so that a list may become a number."""
    if at:
        yield at
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from leaves(part, (*at, key))


def changed(value: Any, at: Path_, new: Any) -> Any:
    """A copy of `value` with `new` at `at`."""
    out = copy.deepcopy(value)
    here = out
    for key in at[:-1]:
        here = here[key]
    here[at[-1]] = new
    return out


@dataclass
class Lie:
    """At `at` of the answer to `op` stands `new`. `heard`: every honest answer, by operation."""

    op: str = ""
    at: Path_ = ()
    new: Any = None
    heard: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __call__(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        self.heard.setdefault(op, []).append(fields)
        if op != self.op:
            return fields
        try:
            return changed(fields, self.at, self.new)
        except (KeyError, IndexError, TypeError):
            return fields  # another answer to the same operation, of another shape


class Twisted:
    """A transport to the pod whose home is `there`. `instead`: operations that are not carried out, but answered."""

    def __init__(self, name: str, there: OrchHome, lie: Lie, instead: Mapping[str, Operation]) -> None:
        self.name, self.there, self.lie, self.instead = name, there, lie, instead

    def connect(self) -> None:
        return

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        return LocalTransport().run(argv, timeout_s=timeout_s, stdin=stdin, env=env)

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        return Speaker(self.greeting(), self.answer)

    def put(self, data: bytes, path: PurePosixPath, *, timeout_s: float, mode: int = 0o600) -> None:
        return

    def close(self) -> None:
        return

    def answer(self, message: dict[str, Any], data: bytes) -> bytes:
        op = str(message["op"])
        try:
            instead = self.instead.get(op)
            found = (
                instead(self.there, message["args"], data)
                if instead
                else dispatch(self.there, op, message["args"], data)
            )
        except OrchError as e:
            told = self.lie(f"{op}!", error_row(e))
            return as_frame({"ok": False, "error": told})
        return as_frame({"ok": True, "fields": self.lie(op, found.fields)}, found.data)

    def greeting(self) -> bytes:
        hello = {"v": VERSION, "home": str(self.there.path), "pid": 1, "now": 1.0, "hostname": "box"}
        return f"{GREETING} {VERSION}\n".encode() + as_frame(self.lie("hello", hello))


def as_frame(message: dict[str, Any], data: bytes = b"") -> bytes:
    """As `pack`, also of what no honest side can write."""
    try:
        return pack(message, data)
    except UnicodeEncodeError:
        text = json.dumps(message).encode("ascii")
        return struct.pack(">II", len(text), len(data)) + text + data
