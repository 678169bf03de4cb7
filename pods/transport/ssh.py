"""Another machine over SSH: the transport seam on one connection that is made at first use and made again when lost.

It takes /bin/sh and dd on the far side and nothing else: no SFTP, no tar, no particular login shell. A call during
which the connection is lost raises; the next call connects again. A command that was begun is ended neither by a lost
connection nor by a timeout here: what must be known about it is in files on the pod, and what may hang there needs a
limit there.

    E-SSH-040 the connection was lost   041 no answer in time   042 no more sessions   043 no commands are run
    E-SSH-044 the login shell ended first   046 the command's shell was ended   049 a file cannot be written
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import paramiko

from pods.transport.base import Process, Result
from pods.transport.script import Stream, check_text, login_line, run_script, start_script
from pods.transport.sshchannel import Wire, hang_up, login_shell_ended
from pods.transport.sshlink import Link, fetch_host_keys, lost, open_link
from pods.transport.sshprocess import SshProcess
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import OrchError, RemoteError, UnreachableError

__all__ = ["SshTransport", "fetch_host_keys"]

CONNECT_S = 5.0
SESSION_RETRY_S = 1.5
EXIT_S = 2.0

_PUT = r"""
umask 077
f=$1 n=$2 m=$3
d=${f%/*}
[ "$d" = "$f" ] && d=.
[ -d "$f" ] && { echo "it is a directory" >&2; exit 14; }
mkdir -p -- "${d:-/}" || exit 11
t=$f.tmp.$$
trap 'rm -f -- "$t"' 0
trap 'exit 15' 1 2 13 15
cat >"$t" || exit 12
s=$(wc -c <"$t") || exit 12
[ "$s" -eq "$n" ] || { echo "$((s)) of $n bytes arrived" >&2; exit 13; }
chmod "$m" "$t" || exit 12
case $(sync --version 2>/dev/null) in *coreutils*) sync "$t" || exit 12 ;; esac
mv -f -- "$t" "$f" || exit 12
"""


class SshTransport:
    """The transport to the pod `name` of the inventory. Threads may share it.

    `timeout_s` is for each step of connecting. `reach_s`: who has something else to show does not wait longer than that
    for a sign of life, which is TCP's answer, and then the first line of sshd's.
    """

    def __init__(
        self, name: str, spec: PodSpec, *, config_file: Path | None = None, timeout_s: float = CONNECT_S,
        reach_s: float | None = None,
    ) -> None:  # fmt: skip
        self.name, self.spec = name, spec
        self._config_file, self._timeout_s, self._reach_s = config_file, timeout_s, reach_s
        self._lock = threading.Lock()
        self._link: Link | None = None

    def connect(self) -> None:
        """Have a connection that is up, as far as this side knows."""
        self._connected()

    def _connected(self) -> paramiko.Transport:
        with self._lock:
            if self._link is not None and not self._link.alive:
                self._link.close()
                self._link = None
            if self._link is None:
                self._link = open_link(self.name, self.spec, self._config_file, self._timeout_s, self._reach_s)
            return self._link.transport

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        mark = _mark()
        script = run_script(argv, env, mark)
        with self._session(timeout_s) as channel:
            wire = Wire(channel, self.name, self._where, argv[0], timeout_s)
            wire.execute(login_line(script))
            out, err = Stream(mark, self.name), Stream(mark, self.name)
            wire.exchange(script + stdin, out, err)
            if out.exit_code is None:
                raise self._ended_early(channel, argv[0], out, err)
            wire.wait_for_exit(EXIT_S)
        stdout, stderr = (bytes(s.output).decode(errors="replace") for s in (out, err))
        return Result(tuple(argv), out.exit_code, stdout, stderr)

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        mark = _mark()
        script = start_script(argv, mark)
        channel = self._open_session(timeout_s)
        try:
            Wire(channel, self.name, self._where, argv[0], timeout_s).execute(login_line(script))
            process = SshProcess(channel, self.name, self._where, argv[0], mark)
            process.begin(script, timeout_s=timeout_s)
        except BaseException:
            hang_up(channel)
            raise
        return process

    def put(self, data: bytes, path: PurePosixPath, *, timeout_s: float, mode: int = 0o600) -> None:
        check_text(str(path))
        argv = ["/bin/sh", "-c", _PUT, "sh", str(path), str(len(data)), format(mode, "o")]
        done = self.run(argv, timeout_s=timeout_s, stdin=data)
        if not done.ok:
            told = done.stderr.strip().splitlines()
            raise RemoteError(
                "E-SSH-049", f"a file cannot be written on pod {self.name}", where=str(path),
                value=told[-1] if told else f"exit code {done.exit_code}", fix=f"orch pods check {self.name}",
            )  # fmt: skip

    def open_tcp(self, host: str, port: int, *, timeout_s: float) -> paramiko.Channel:
        """A byte stream to `host`:`port` as the pod sees it, for a tunnel."""
        transport = self._connected()
        try:
            return transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout_s)
        except (paramiko.SSHException, EOFError, OSError) as e:
            if not transport.is_active():
                raise lost(self.name, self._where, e) from e
            raise RemoteError(
                "E-SSH-050", f"pod {self.name} does not reach {host}:{port}", where=self._where, value=e,
                expected="something that listens there, and AllowTcpForwarding in its sshd_config",
            ) from e  # fmt: skip

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    @property
    def _where(self) -> str:
        return str(self.spec.ssh)

    @contextlib.contextmanager
    def _session(self, timeout_s: float) -> Iterator[paramiko.Channel]:
        channel = self._open_session(timeout_s)
        try:
            yield channel
        finally:
            hang_up(channel)

    def _open_session(self, timeout_s: float) -> paramiko.Channel:
        """A session channel; one that ended a moment ago may still count against MaxSessions."""
        transport = self._connected()
        deadline = time.monotonic() + min(SESSION_RETRY_S, timeout_s)
        while True:
            try:
                return transport.open_session(timeout=min(timeout_s, self._timeout_s))
            except paramiko.ChannelException as e:
                if time.monotonic() > deadline:
                    raise RemoteError(
                        "E-SSH-042", f"pod {self.name} takes no more sessions on this connection", where=self._where,
                        value=e, expected="MaxSessions of its sshd above those in use",
                    ) from e  # fmt: skip
                time.sleep(0.05)
            except (paramiko.SSHException, EOFError, OSError) as e:
                raise self._no_session(transport, e) from e

    def _no_session(self, transport: paramiko.Transport, e: Exception) -> UnreachableError:
        if not transport.is_active():
            return lost(self.name, self._where, e)
        if not len(transport._channels):  # type: ignore[attr-defined]  # nobody else needs it: connect anew next time
            self.close()
        return UnreachableError(
            "E-SSH-041", f"pod {self.name} does not answer on its connection", where=self._where,
            expected=f"an answer in {self._timeout_s:g} s", fix="the same command again",
        )  # fmt: skip

    def _ended_early(self, channel: paramiko.Channel, program: str, out: Stream, err: Stream) -> OrchError:
        """The streams ended without the mark that says how the command did."""
        transport = channel.get_transport()
        if transport is None or not transport.is_active():
            return lost(self.name, self._where)
        if not out.begun:
            return login_shell_ended(self.name, self._where, err.noise() or out.noise())
        return RemoteError("E-SSH-046", f"`{program}` was ended with its shell on pod {self.name}", where=self._where)


def _mark() -> str:
    return "orch-" + secrets.token_hex(16)
