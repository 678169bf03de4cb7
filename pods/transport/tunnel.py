"""A port of a pod as a port of this machine: on 127.0.0.1, carried by the pod's one connection, ended with its owner.

Used by `orch forward`, `dashboard` and `tensorboard`. It never listens on another address; when the connection to the
pod was lost, it is made again for the next one that comes in.

    E-SSH-050 the pod does not reach the port   E-SSH-051 no port can be had here
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import paramiko

from pods.transport.sshchannel import hang_up
from workloads.contract.errors import LocalError, OrchError

MAX_CONNECTIONS = 64
OPEN_S = 10.0
CHUNK_BYTES = 64 << 10
JOIN_S = 2.0


class Carrier(Protocol):
    """What a tunnel takes of `SshTransport`."""

    name: str

    def open_tcp(self, host: str, port: int, *, timeout_s: float) -> paramiko.Channel: ...


@dataclass
class Tunnel:
    """`127.0.0.1:local_port` until `close`. `last_error` says why a connection came to nothing."""

    carrier: Carrier
    host: str
    port: int
    local_port: int = 0
    last_error: OrchError | None = None
    refused: int = 0
    """connections that were closed at once because too many were open"""
    _listener: socket.socket | None = field(default=None, repr=False)
    _open: set[socket.socket | paramiko.Channel] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_CONNECTIONS), repr=False
    )
    _accepting: threading.Thread | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def open(self) -> Self:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind(("127.0.0.1", 0))
            listener.listen(MAX_CONNECTIONS)
        except OSError as e:
            listener.close()
            raise LocalError("E-SSH-051", f"no port can be had on this machine: {e.strerror}", where="127.0.0.1") from e
        self._listener, self.local_port = listener, listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True, name="tunnel")
        self._accepting.start()
        return self

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                self.refused += 1
                sock.close()
                continue
            threading.Thread(target=self._carry, args=(sock,), daemon=True, name="tunnel-open").start()

    def _carry(self, sock: socket.socket) -> None:
        """One connection from its beginning to its end."""
        channel: paramiko.Channel | None = None
        try:
            with self._held(sock):
                channel = self.carrier.open_tcp(self.host, self.port, timeout_s=OPEN_S)
                with self._held(channel):
                    back = threading.Thread(target=_back, args=(channel, sock), daemon=True, name="tunnel-back")
                    back.start()
                    _forth(sock, channel)
                    back.join()  # ends with the channel, which ends with the pod, the connection or `close`
        except OrchError as e:
            self.last_error = e
        finally:
            if channel is not None:
                hang_up(channel)
            sock.close()
            self._slots.release()

    @contextlib.contextmanager
    def _held(self, stream: socket.socket | paramiko.Channel) -> Iterator[None]:
        with self._lock:
            if self._listener is None:
                _end(stream)
            self._open.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(stream)

    def close(self) -> None:
        """Stop listening and end every connection. Idempotent."""
        with self._lock:
            listener, self._listener = self._listener, None
            streams = list(self._open)
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
        for stream in streams:
            _end(stream)
        if self._accepting is not None:
            self._accepting.join(JOIN_S)


def open_tunnel(transport: Carrier, host: str, port: int) -> Tunnel:
    """A tunnel to `host`:`port` as the pod sees them. The pod is asked with the first connection, not before."""
    return Tunnel(transport, host, port).open()


def _end(stream: socket.socket | paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        if isinstance(stream, socket.socket):
            stream.shutdown(socket.SHUT_RDWR)  # wakes recv; its own thread closes it
        else:
            stream.close()


def _forth(sock: socket.socket, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := sock.recv(CHUNK_BYTES):
            channel.sendall(data)
        channel.shutdown_write()


def _back(channel: paramiko.Channel, sock: socket.socket) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := channel.recv(CHUNK_BYTES):
            sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR if channel.closed else socket.SHUT_WR)
