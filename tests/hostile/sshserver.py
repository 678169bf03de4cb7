"""An SSH server that is not OpenSSH: it writes down everything the client asks of it, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko

Behave = Callable[[paramiko.Channel, bytes], None]


def honest(channel: paramiko.Channel, command: bytes) -> None:
    """Carry out the command as sshd does."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command.decode()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr

    def feed() -> None:
        assert process.stdin
        with contextlib.suppress(OSError, ValueError):
            while data := channel.recv(65536):
                process.stdin.write(data)
                process.stdin.flush()
            process.stdin.close()

    def errors() -> None:
        assert process.stderr
        while data := process.stderr.read1(65536):  # type: ignore[attr-defined]
            channel.sendall_stderr(data)

    threads = [threading.Thread(target=t, daemon=True) for t in (feed, errors)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(OSError):
        while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
            channel.sendall(data)
        threads[1].join(5)
        channel.send_exit_status(process.wait(timeout=120))
        channel.close()
    process.kill()
    process.wait(timeout=120)


class Server(paramiko.ServerInterface):
    """`asked`: every request, in order, as (kind, what)."""

    def __init__(self, behave: Behave, *, lets_in: bool = True, banner: str = "") -> None:
        self.behave, self.lets_in, self.banner = behave, lets_in, banner
        self.asked: list[tuple[str, Any]] = []

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password,keyboard-interactive"

    def get_banner(self) -> tuple[str, str] | tuple[None, None]:
        return (self.banner, "en-US") if self.banner else (None, None)

    def check_auth_none(self, username: str) -> int:
        self.asked.append(("auth", "none"))
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self.asked.append(("auth", "password"))
        return paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> int:
        self.asked.append(("auth", "keyboard-interactive"))
        return paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.asked.append(("auth", "publickey"))
        return paramiko.AUTH_SUCCESSFUL if self.lets_in else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.asked.append(("channel", kind))
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.asked.append(("exec", command))
        threading.Thread(target=self.behave, args=(channel, command), daemon=True).start()
        return True

    def check_channel_pty_request(self, *args: Any) -> bool:
        self.asked.append(("pty", None))
        return True

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        self.asked.append(("env", name))
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        self.asked.append(("shell", None))
        return True

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        self.asked.append(("subsystem", name))
        return False

    def check_channel_x11_request(self, *args: Any) -> bool:
        self.asked.append(("x11", None))
        return True

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        self.asked.append(("agent", None))
        return True

    def check_port_forward_request(self, address: str, port: int) -> bool:
        self.asked.append(("tcpip-forward", (address, port)))
        return False

    def check_global_request(self, kind: str, msg: paramiko.Message) -> bool:
        self.asked.append(("global", kind))
        return False

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.asked}


@contextlib.contextmanager
def serve(key: Path, server: Server, *, version: str = "") -> Iterator[tuple[int, list[paramiko.Transport]]]:
    """Listen on loopback until the end of the block: (port, the connections so far)."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    transports: list[paramiko.Transport] = []
    host_key = paramiko.Ed25519Key.from_private_key_file(str(key))

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(sock)
            if version:
                transport.local_version = version
            transport.add_server_key(host_key)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=server, event=threading.Event())
                transports.append(transport)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], transports
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)
        for transport in transports:
            transport.close()


def wait(condition: Callable[[], Any], limit_s: float = 5.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
