"""A command that runs on a pod, and its streams: the `Process` of the transport seam over one channel."""

from __future__ import annotations

import contextlib
import select
import time

import paramiko

from pods.transport.script import Stream
from pods.transport.sshchannel import CHUNK_BYTES, SEND_POLL_S, alive, hang_up, login_shell_ended, received
from pods.transport.sshlink import lost
from workloads.contract.errors import UnreachableError

STDERR_BYTES = 64 << 10


class SshProcess:
    """What the pod prints before the command begins is dropped. One thread at a time, but `close` from any."""

    def __init__(self, channel: paramiko.Channel, pod: str, where: str, program: str, mark: str) -> None:
        self._channel, self._pod, self._where, self._program = channel, pod, where, program
        self._out, self._err = Stream(mark, pod), Stream(mark, pod)
        self._tail, self._early = bytearray(), b""
        self._readable = select.poll()
        self._readable.register(channel.fileno(), select.POLLIN)
        channel.settimeout(0.0)

    def begin(self, script: bytes, *, timeout_s: float) -> None:
        """Send the script and have the mark that it began; what follows is the command's."""
        self.write(script, timeout_s=timeout_s)
        self._early = self._next(timeout_s, begun=True)
        if not self._out.begun:
            raise login_shell_ended(self._pod, self._where, self._err.noise() or self._out.noise())

    def write(self, data: bytes, *, timeout_s: float) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + timeout_s
        while view:
            self._drain_stderr()
            sent = self._send(view)
            if sent:
                view = view[sent:]
                deadline = time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                raise UnreachableError(
                    "E-SSH-041", f"`{self._program}` on pod {self._pod} takes no input", where=self._where,
                    expected=f"{timeout_s:g} s",
                )  # fmt: skip
            else:
                time.sleep(SEND_POLL_S)

    def _send(self, view: memoryview) -> int:
        if not alive(self._channel):
            raise lost(self._pod, self._where)
        try:
            if self._channel.closed:
                raise OSError
            return self._channel.send(bytes(view[:CHUNK_BYTES])) if self._channel.send_ready() else 0
        except TimeoutError:
            return 0
        except (OSError, EOFError, paramiko.SSHException) as e:
            if not alive(self._channel):
                raise lost(self._pod, self._where, e) from e
            raise UnreachableError(
                "E-SSH-046", f"`{self._program}` on pod {self._pod} has ended", where=self._where
            ) from e

    def read(self, *, timeout_s: float) -> bytes:
        if self._early:
            early, self._early = self._early, b""
            return early
        return self._next(timeout_s)

    def _next(self, timeout_s: float, *, begun: bool = False) -> bytes:
        """Some output, b"" at its end. `begun`: also b"" once the command has begun."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._drain_stderr()
            if self._channel.recv_ready():
                found = self._output(self._received())
                if found or (begun and self._out.begun):
                    return found
                continue
            if self._channel.eof_received or self._channel.closed:
                if self._channel.recv_ready() or self._channel.recv_stderr_ready():
                    continue
                if not alive(self._channel):
                    raise lost(self._pod, self._where)
                return b""
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise UnreachableError(
                    "E-SSH-041", f"`{self._program}` on pod {self._pod} does not answer", where=self._where,
                    expected=f"an answer in {timeout_s:g} s",
                )  # fmt: skip
            self._readable.poll(left_s * 1000)

    def _received(self, *, stderr: bool = False) -> bytes:
        try:
            return received(self._channel, stderr=stderr)
        except TimeoutError:
            return b""
        except (EOFError, OSError, paramiko.SSHException) as e:
            raise lost(self._pod, self._where, e) from e

    def _output(self, data: bytes) -> bytes:
        if self._out.begun:
            return data
        self._out.feed(data)
        return self._out.take() if self._out.begun else b""

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            data = self._received(stderr=True)
            if not self._err.begun:
                self._err.feed(data)
                data = self._err.take() if self._err.begun else b""
            self._tail += data
            del self._tail[:-STDERR_BYTES]

    def stderr(self) -> str:
        with contextlib.suppress(UnreachableError):  # what was read before is still worth telling
            self._drain_stderr()
        return bytes(self._tail).decode(errors="replace") or ("" if self._err.begun else self._err.noise())

    def close(self) -> None:
        hang_up(self._channel)
