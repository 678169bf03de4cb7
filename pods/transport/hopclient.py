"""One host reached: TCP with limits, key exchange, the host key compared, and only then our own keys shown.

`HopClient` is the client that a `fabric.Connection` of ours is given, so that nothing of what fabric or paramiko would
do on their own happens: no key is added by itself, no password, no agent forwarded, no wait without a bound.

    E-SSH-030 no such host   031 refused   032 timed out   033 no route   034 no answer after TCP   035 dropped
    E-SSH-036 what answers is not SSH   037 no common algorithm   038 ProxyCommand ended
    E-SSH-039 a hop cannot reach the next
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paramiko

from pods.transport.hostkeys import ALGORITHMS, HostKey, algorithms
from pods.transport.identity import Credentials, authenticate
from pods.transport.sshconfig import Hop
from workloads.contract.errors import OrchError, UnreachableError, escape

IDLE_S, INTERVAL_S, COUNT, USER_TIMEOUT_MS = 3, 2, 3, 10_000
"""a cut is noticed in IDLE + INTERVAL * COUNT seconds, or USER_TIMEOUT when something is under way"""
NAT_KEEPALIVE_S = 30
AUTH_FACTOR = 3
PROXY_EXIT_S = 2.0
MACOS_DROP_TIME = 0x80  # TCP_RXT_CONNDROPTIME

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # its tracebacks are not for a terminal


class Dropped(UnreachableError):
    """Closed before it said anything: sshd has too many at once. Worth another try."""


Judge = Callable[[Hop, str], None]
"""Looks at the key that a host showed; raises RefusedError when we do not go on."""


@dataclass(frozen=True)
class Way:
    """How one hop is gone: whose pod it is for, which keys it may show, who judges the one it shows."""

    pod: str
    hop: Hop
    accepted: tuple[str, ...]
    """keys that it may show; empty: any, as `judge` decides"""
    judge: Judge
    timeout_s: float
    login: bool = True
    """False: only to see the host key"""
    reach_s: float | None = None
    """for a sign of life: TCP's answer, the first line of sshd's; default: `timeout_s`"""

    @property
    def sign_s(self) -> float:
        """A ProxyCommand has to begin first: it gets all the time."""
        return self.timeout_s if self.reach_s is None or self.hop.proxy_command else self.reach_s


class HopClient(paramiko.SSHClient):
    """A client for one hop. `seen` is the host key it showed."""

    def __init__(self, way: Way, offered: Credentials | None) -> None:
        super().__init__()
        self.set_missing_host_key_policy(paramiko.RejectPolicy())
        self.way, self.offered = way, offered
        self.seen: HostKey | None = None
        self._proxy: subprocess.Popen[bytes] | None = None

    def connect(self, hostname: str, *_: Any, sock: Any = None, **__: Any) -> None:
        """Called by fabric; `sock` is the channel through the hop before."""
        way = self.way
        started = time.monotonic()
        if sock is None:
            sock = self._proxied() if way.hop.proxy_command else self._dialled()
        try:
            key = self._exchange(sock, list(way.accepted), started)
            if way.accepted and key is None:  # none of those that we know: which one, then?
                self._drop()
                key = self._exchange(self._again(sock), [], started)
            assert key is not None
            self.seen = HostKey(way.hop.address, key, key in way.accepted)
            way.judge(way.hop, key)
            if way.login and self.offered is not None:
                transport = self._live()
                transport.auth_timeout = AUTH_FACTOR * way.timeout_s
                authenticate(way.pod, way.hop, transport, self.offered)
                transport.set_keepalive(NAT_KEEPALIVE_S)
        except BaseException:
            with contextlib.suppress(OSError):
                sock.close()
            self.close()
            raise

    def _dialled(self) -> socket.socket:
        return dial(self.way.pod, self.way.hop, self.way.timeout_s, self.way.sign_s)

    def _live(self) -> paramiko.Transport:
        transport = self.get_transport()
        assert transport is not None
        return transport

    def _again(self, sock: Any) -> Any:
        """Another way to the same host, like the one that was used up."""
        if isinstance(sock, paramiko.Channel):
            assert sock.transport is not None
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                address = (self.way.hop.host, self.way.hop.port)
                return sock.transport.open_channel("direct-tcpip", address, ("", 0), timeout=self.way.timeout_s)
            raise self._error("E-SSH-039", "cannot be reached a second time to see its host key")
        return self._proxied() if self.way.hop.proxy_command else self._dialled()

    def _exchange(self, sock: Any, accepted: list[str], started: float) -> str | None:
        """Key exchange, bounded. The key shown as text; None when the host has none of the kinds in `accepted`."""
        transport = paramiko.Transport(sock)
        self._transport: paramiko.Transport | None = transport
        names = algorithms(accepted) if accepted else [a for group in ALGORITHMS.values() for a in group]
        transport.get_security_options().key_types = tuple(names)
        timeout_s = self.way.timeout_s
        transport.banner_timeout = transport.handshake_timeout = 2 * timeout_s + 1  # ours below comes first
        transport.channel_timeout = timeout_s
        done = threading.Event()
        transport.start_client(event=done)
        finished = done.wait(self.way.sign_s)
        if not finished and transport.remote_version:  # it lives
            finished = done.wait(timeout_s - self.way.sign_s)
        if finished and transport.is_active() and transport.initial_kex_done:
            key = transport.get_remote_server_key()
            return f"{key.get_name()} {key.get_base64()}"
        error = transport.get_exception() if finished else None
        banner = transport.remote_version
        transport.close()
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(error) and accepted:
            return None
        raise self._failed(error, finished, banner, time.monotonic() - started)

    def _failed(self, error: Exception | None, finished: bool, banner: str, waited_s: float) -> OrchError:
        if not finished:
            what = "does not finish the key exchange" if banner else "accepts connections, but its sshd does not answer"
            return self._error("E-SSH-034", what, f"waited {self.way.timeout_s if banner else self.way.sign_s:g} s")
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            return self._error("E-SSH-037", "has no algorithm in common with us", error)
        if "Indecipherable" in str(error) or "Invalid SSH banner" in str(error):
            return self._error("E-SSH-036", "answers, but not as an SSH server", error)
        if self._proxy is not None and self._ended(self._proxy):
            return self._error(
                "E-SSH-038", f"is not reached: its ProxyCommand ended with {self._proxy.returncode}",
                self.way.hop.proxy_command,
            )  # fmt: skip
        where = f"closed after {waited_s:.1f} s" + (f": {error}" if error and str(error) else "")
        return self._error("E-SSH-035", "closes the connection at once (its sshd may have too many)", where, Dropped)

    def _error(
        self, code: str, what: str, value: object = None, kind: type[UnreachableError] = UnreachableError
    ) -> UnreachableError:
        return unreachable(self.way.pod, self.way.hop, code, what, value, kind)

    def _proxied(self) -> socket.socket:
        """Our end of a socket pair whose other end is the standard input and output of ProxyCommand."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._proxy = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self.way.hop.proxy_command}"],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return ours

    @staticmethod
    def _ended(process: subprocess.Popen[bytes]) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PROXY_EXIT_S)
        return process.returncode is not None

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.close()
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(proxy.pid, signal.SIGKILL)
            proxy.wait(timeout=PROXY_EXIT_S)

    def close(self) -> None:
        self._drop()
        super().close()
        if self.offered is not None:
            self.offered.close()


def unreachable(
    pod: str,
    hop: Hop,
    code: str,
    what: str,
    value: object = None,
    kind: type[UnreachableError] = UnreachableError,
) -> UnreachableError:
    told = None if value is None or not str(value) else escape(value)
    return kind(
        code, f"pod {pod} cannot be reached: {hop.address} {what}", where=f"{hop.user}@{hop.address}", value=told,
        fix=f"ssh -v -p {hop.port} {hop.user}@{hop.host} true   (says what ssh itself meets)",
    )  # fmt: skip


def dial(pod: str, hop: Hop, timeout_s: float, reach_s: float) -> socket.socket:
    """A TCP connection to `hop`: `timeout_s` for its name, then `reach_s` for all of its addresses together."""
    found = _addresses(pod, hop, timeout_s)
    deadline = time.monotonic() + reach_s
    last: OSError | None = None
    for i, (family, kind, proto, _, address) in enumerate(found):
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(max((deadline - time.monotonic()) / (len(found) - i), 0.1))
            sock.connect(address)
            notice_cuts(sock)
        except OSError as e:
            sock.close()
            last = e
        else:
            return sock
    raise _no_connection(pod, hop, last, reach_s, str(found[-1][4][0]) if found else hop.host)


def _addresses(pod: str, hop: Hop, timeout_s: float) -> list[Any]:
    """What the resolver says; it is asked in a thread, because it keeps clocks of its own."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as e:
            answer.append(e)

    thread = threading.Thread(target=ask, daemon=True, name=f"resolve {hop.host}")
    thread.start()
    thread.join(timeout_s)
    if not answer:
        raise unreachable(pod, hop, "E-SSH-030", f"is not resolved in {timeout_s:g} s")
    if isinstance(answer[0], Exception):
        raise unreachable(pod, hop, "E-SSH-030", "is no host that is known here", answer[0]) from answer[0]
    return list(answer[0])


def _no_connection(pod: str, hop: Hop, e: OSError | None, timeout_s: float, address: str) -> UnreachableError:
    at = f"address {address}"
    if isinstance(e, ConnectionRefusedError):
        return unreachable(pod, hop, "E-SSH-031", "refuses the connection: nothing listens there", at)
    if isinstance(e, TimeoutError):
        return unreachable(pod, hop, "E-SSH-032", f"does not answer in {timeout_s:g} s", at)
    if e is not None and e.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return unreachable(pod, hop, "E-SSH-033", f"is on no route from here ({e.strerror})", at)
    if isinstance(e, ConnectionResetError):
        return unreachable(pod, hop, "E-SSH-035", "resets the connection at once", at, Dropped)
    return unreachable(pod, hop, "E-SSH-033", f"cannot be connected to ({e})", at)


def notice_cuts(sock: socket.socket) -> None:
    """A peer that is gone without a word makes the socket fail within 15 s."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "darwin":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, MACOS_DROP_TIME, USER_TIMEOUT_MS // 1000)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT)
