"""A TCP wire on loopback that breaks: each connection through it is reset after so many bytes, at whatever moment.

    with Wire(("127.0.0.1", sshd.port), after=lambda: 50_000) as wire: ... wire.port ... wire.cuts

A reset is a real one (SO_LINGER 0): both ends get ECONNRESET, and what was under way is lost. `after` says for each
connection how many bytes may come back from the far end; None: it is left alone.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 << 10
TICK_S = 0.2


class Wire:
    def __init__(self, far: tuple[str, int], after: Callable[[], int | None]) -> None:
        self._far, self._after = far, after
        self.cuts = self.connections = 0
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._threads.append(threading.Thread(target=self._accept, daemon=True, name="wire"))
        self._threads[0].start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
        self._listener.close()

    def _accept(self) -> None:
        self._listener.settimeout(TICK_S)
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            thread = threading.Thread(target=self._carry, args=(near, self._after()), daemon=True)
            self._threads = [self._threads[0], *(t for t in self._threads[1:] if t.is_alive()), thread]
            thread.start()

    def _carry(self, near: socket.socket, left: int | None) -> None:
        with (
            near,
            suppress(OSError),
            socket.create_connection(self._far, 10) as far,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while not self._ended.is_set():
                for key, _ in ready.select(TICK_S):
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(CHUNK_BYTES)
                    if not data:
                        return
                    if source is far and left is not None:
                        data, left = data[:left], left - len(data)
                    sink.sendall(data)
                    if left is not None and left < 0:
                        self.cuts += 1
                        _reset(near, far)
                        return


def _reset(*ends: socket.socket) -> None:
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
