"""One channel of a connection, every wait on it bounded: ask for a command, send and receive at the same time.

paramiko's own waits have no limit in places (the answer to an exec request); here each has one.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time

import paramiko

from pods.transport.script import Stream
from pods.transport.sshlink import lost, shut
from workloads.contract.errors import RemoteError, UnreachableError

CHUNK_BYTES = 64 << 10
SEND_POLL_S = 0.01


class Wire:
    """A channel with a command's clock: `deadline` is for all of it."""

    def __init__(self, channel: paramiko.Channel, pod: str, where: str, program: str, timeout_s: float) -> None:
        self._channel, self._pod, self._where, self._program = channel, pod, where, program
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    @property
    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def execute(self, line: str) -> None:
        """Ask for `line` to be run, and have the answer."""
        timer = threading.Timer(max(self._left_s, 0.0), self._channel.close)
        timer.daemon = True
        timer.start()
        try:
            self._channel.exec_command(line)
        except (paramiko.SSHException, EOFError, OSError) as e:
            if not alive(self._channel):
                raise lost(self._pod, self._where, e) from e
            if self._left_s <= 0:
                raise self._late() from e
            raise RemoteError(
                "E-SSH-043", f"pod {self._pod} runs no commands over SSH", where=self._where, value=e,
                expected="an SSH server that gives a shell (a provider's proxy may not: use its direct address)",
            ) from e  # fmt: skip
        finally:
            timer.cancel()

    def exchange(self, data: bytes, out: Stream, err: Stream) -> None:
        """Send `data` and its end while reading both streams, until both have their end mark or come to an end."""
        channel, rest = self._channel, memoryview(data)
        readable = select.poll()
        readable.register(channel.fileno(), select.POLLIN)
        channel.settimeout(0.0)
        ended = False
        while out.exit_code is None or err.exit_code is None:
            if self._left_s <= 0:
                raise self._late()
            moved = False
            if not ended and channel.send_ready():
                sent = self._send(rest)
                rest = rest[sent:]
                moved = sent > 0
                if not rest or channel.closed:
                    with contextlib.suppress(EOFError):  # the connection broke: what was read says so
                        channel.shutdown_write()
                    ended = True
            if self._drain(out, err) or moved:
                continue
            if channel.eof_received or channel.closed:
                if self._drain(out, err):
                    continue
                return
            pause_s = self._left_s if ended else min(SEND_POLL_S, self._left_s)
            readable.poll(max(pause_s, 0.0) * 1000)

    def _send(self, rest: memoryview) -> int:
        try:
            return self._channel.send(bytes(rest[:CHUNK_BYTES])) if rest else 0
        except TimeoutError:
            return 0
        except (OSError, EOFError):
            return len(rest)  # it reads no more: what it says about that is still to come

    def _drain(self, out: Stream, err: Stream) -> bool:
        try:
            return drain(self._channel, out, err)
        except TimeoutError:
            return False
        except (
            EOFError,
            OSError,
            paramiko.SSHException,
        ) as e:  # with a hole in it, the end mark behind the hole must not count
            raise lost(self._pod, self._where, e) from e

    def wait_for_exit(self, limit_s: float) -> None:
        """Have the session ended over there, so that it no longer counts; not longer than `limit_s`."""
        self._channel.status_event.wait(min(limit_s, max(self._left_s, 0.0)))

    def _late(self) -> UnreachableError:
        return UnreachableError(
            "E-SSH-041", f"`{self._program}` did not answer on pod {self._pod}", where=self._where,
            expected=f"an answer in {self._timeout_s:g} s", fix="the same command again",
        )  # fmt: skip


def login_shell_ended(pod: str, where: str, told: str) -> RemoteError:
    return RemoteError(
        "E-SSH-044", f"the login shell of pod {pod} ended before it ran a command", where=where, value=told or None,
        expected="a shell that runs `/bin/sh -c ...`", fix=f"orch pods ssh {pod} -- true   (shows what it says)",
    )  # fmt: skip


def alive(channel: paramiko.Channel) -> bool:
    """Whether the connection below `channel` is up; a channel that ended says nothing about that."""
    transport = channel.get_transport()
    return transport is not None and transport.is_active()


def hang_up(channel: paramiko.Channel) -> None:
    """Close it. paramiko raises EOFError when the connection breaks just then, which is as closed as can be."""
    shut(channel.close)


def drain(channel: paramiko.Channel, out: Stream, err: Stream) -> bool:
    """Take what has come; whether there was anything. Raises as `received` does."""
    moved = False
    if channel.recv_ready():
        out.feed(received(channel))
        moved = True
    if channel.recv_stderr_ready():
        err.feed(received(channel, stderr=True))
        moved = True
    return moved


def received(channel: paramiko.Channel, *, stderr: bool = False) -> bytes:
    """What is there to be read. EOFError or OSError when the connection breaks just then: reading also sends (the
    window), and when that fails, what was read is gone. Whatever is in the buffer behind it must not be used."""
    return channel.recv_stderr(CHUNK_BYTES) if stderr else channel.recv(CHUNK_BYTES)
