"""The process of a pod that is none: it greets, and gives each request to a function that makes the answer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pods.remote.wire import unpack
from workloads.contract.errors import UnreachableError

Answering = Callable[[dict[str, Any], bytes], bytes]


class Speaker:
    """A `Process` of the transport seam that speaks `pods.remote.wire`."""

    def __init__(self, greeting: bytes, answer: Answering) -> None:
        self._answer, self._asked, self._said = answer, bytearray(), bytearray(greeting)

    def write(self, data: bytes, *, timeout_s: float) -> None:
        self._asked += data
        text, size = struct.unpack_from(">II", self._asked)
        if len(self._asked) < 8 + text + size:
            return
        rest = bytes(self._asked)
        self._asked.clear()

        def take(count: int) -> bytes:
            nonlocal rest
            got, rest = rest[:count], rest[count:]
            return got

        self._said += self._answer(*unpack(take))

    def read(self, *, timeout_s: float) -> bytes:
        if not self._said:
            raise UnreachableError("E-POD-001", "it says nothing")
        chunk = bytes(self._said[: 1 << 20])
        del self._said[: 1 << 20]
        return chunk

    def stderr(self) -> str:
        return "\x1b[2Jcleared"

    def close(self) -> None:
        return
