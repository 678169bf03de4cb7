"""What orch asks of an SSH server, and what it lets one do: a server of our own that writes down and misbehaves."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from pods.pod import FarPod
from pods.transport.ssh import SshTransport
from tests.hostile.corpus import ALL_ESCAPES, harm_in
from tests.hostile.sshserver import Behave, Server, honest, serve, wait
from tests.lab.sshd import make_key, public_key
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import OrchError, RefusedError

SAID = ALL_ESCAPES.encode("utf-8", "replace").decode()


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose configuration turns on everything that orch must leave off."""
    home = tmp_path / "person"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "config").write_text(
        "Host *\n  ForwardAgent yes\n  ForwardX11 yes\n  SendEnv *\n  StrictHostKeyChecking no\n  RequestTTY force\n"
        "  PasswordAuthentication yes\n  UpdateHostKeys yes\n  GatewayPorts yes\n"
    )
    (home / ".ssh" / "known_hosts").write_text("# mine\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def to(tmp_path: Path, person: Path) -> Iterator[Callable[..., SshTransport]]:
    """`to(server)`: a transport to it, with its key pinned."""
    make_key(tmp_path / "host")
    make_key(tmp_path / "mine")
    before = {p: p.read_bytes() for p in (person / ".ssh").iterdir()}
    with contextlib.ExitStack() as stack:

        def connect(server: Server, *, version: str = "", pinned: str = "", timeout_s: float = 5.0) -> SshTransport:
            port, transports = stack.enter_context(serve(tmp_path / "host", server, version=version))
            spec = PodSpec(
                ssh=f"root@127.0.0.1:{port}", host_key=pinned or public_key(tmp_path / "host"),
                identity=str(tmp_path / "mine"),
            )  # fmt: skip
            transport = SshTransport("box", spec, timeout_s=timeout_s)
            transport.seen = transports  # type: ignore[attr-defined]
            stack.callback(transport.close)
            return transport

        yield connect
    assert {p: p.read_bytes() for p in (person / ".ssh").iterdir()} == before, "a person's ~/.ssh is never written"


def refused(transport: SshTransport, timeout_s: float = 8.0) -> OrchError:
    began = time.monotonic()
    with pytest.raises(OrchError) as caught:
        transport.run(["true"], timeout_s=timeout_s)
    assert time.monotonic() - began < timeout_s + 8
    assert not harm_in(caught.value.render()) and len(caught.value.render()) < 3000
    json.dumps(caught.value.as_dict())
    return caught.value


def test_all_that_is_ever_asked_of_a_server(to: Callable[..., SshTransport], tmp_path: Path) -> None:
    server = Server(honest)
    transport = to(server)
    assert transport.run(["echo", "a b"], timeout_s=10, env={"TOKEN": "canary-in-env"}).stdout == "a b\n"
    from pathlib import PurePosixPath

    transport.put(b"data", PurePosixPath(tmp_path / "put"), timeout_s=60)
    pod = FarPod("box", transport, root=str(tmp_path / "there"))
    assert pod.call("runs.keeper").fields["record"] is None
    assert server.kinds() == {"auth", "channel", "exec"}
    assert {what for kind, what in server.asked if kind == "auth"} == {"publickey"}
    assert {what for kind, what in server.asked if kind == "channel"} == {"session"}
    lines = {what for kind, what in server.asked if kind == "exec"}
    assert all(line.startswith(b"/bin/sh -c ") and len(line) < 100 for line in lines), "no word of ours is in `ps`"
    assert b"canary" not in b"".join(lines)


def test_a_server_may_open_no_channel_to_us(to: Callable[..., SshTransport]) -> None:
    server = Server(honest)
    transport = to(server)
    assert transport.run(["true"], timeout_s=60).ok
    (there,) = transport.seen  # type: ignore[attr-defined]
    for kind, args in (
        ("x11", (None, ("127.0.0.1", 6000))), ("auth-agent@openssh.com", (None, None)),
        ("forwarded-tcpip", (("127.0.0.1", 80), ("127.0.0.1", 81))), ("direct-tcpip", (("127.0.0.1", 22), ("a", 1))),
        ("session", (None, None)),
    ):  # fmt: skip
        with pytest.raises((paramiko.ChannelException, paramiko.SSHException)):
            there.open_channel(kind, *args, timeout=5)
    assert transport.run(["echo", "still"], timeout_s=60).stdout == "still\n"


def test_no_password_is_tried_and_no_question_answered(to: Callable[..., SshTransport]) -> None:
    server = Server(honest, lets_in=False, banner=SAID)
    assert isinstance(refused(to(server)), RefusedError)
    assert {what for _, what in server.asked} <= {"publickey", "none"}


def test_another_key_ends_before_anything_is_shown(to: Callable[..., SshTransport], tmp_path: Path) -> None:
    server = Server(honest)
    assert isinstance(refused(to(server, pinned=public_key(make_key(tmp_path / "other")))), RefusedError)
    assert server.asked == []


def endless(channel: paramiko.Channel, command: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            channel.sendall(b"\x1b[2J" * 8192)


def silent(channel: paramiko.Channel, command: bytes) -> None:
    time.sleep(30)


def complains(channel: paramiko.Channel, command: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):
        channel.sendall_stderr(SAID.encode())
        channel.sendall(SAID.encode())
        channel.send_exit_status(1)
        channel.close()


def many_errors(channel: paramiko.Channel, command: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            channel.sendall_stderr(b"x" * 32768)


def only_a_status(channel: paramiko.Channel, command: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):
        channel.send_exit_status(0xFFFFFFFF)
        channel.close()


def echoes(channel: paramiko.Channel, command: bytes) -> None:
    """The script itself comes back, marks and all, as from a terminal that echoes."""
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv(65536):
            channel.sendall(data)


@pytest.mark.parametrize("behave", [endless, silent, complains, many_errors, only_a_status, echoes])
def test_misbehaviour_ends_in_one_block_within_its_bound(
    behave: Behave, to: Callable[..., SshTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _rss_kib()
    transport = to(Server(behave))
    assert refused(transport, timeout_s=1.0).exit_code in (4, 7)
    monkeypatch.setattr("pods.pod.START_S", 1.0)
    with pytest.raises(OrchError) as caught:
        FarPod("box", transport).call("runs.keeper", timeout_s=1.0)
    assert not harm_in(caught.value.render()) and caught.value.exit_code in (4, 7)
    assert _rss_kib() - before < 200 << 10


def _rss_kib() -> int:
    return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * 4


@pytest.mark.parametrize("version", ["SSH-2.0-\x1b]0;x\x07", "SSH-2.0-" + "A" * 200, "SSH-1.5-old"])
def test_version_strings(version: str, to: Callable[..., SshTransport]) -> None:
    server = Server(honest)
    transport = to(server, version=version)
    try:
        transport.run(["true"], timeout_s=60)
    except OrchError as e:
        assert not harm_in(e.render()) and e.exit_code == 4


def test_a_connection_that_is_renegotiated_or_closed_half_way(to: Callable[..., SshTransport]) -> None:
    def closes(channel: paramiko.Channel, command: bytes) -> None:
        channel.get_transport().close()

    server = Server(closes)
    assert refused(to(server), timeout_s=3).exit_code == 4
    assert wait(lambda: server.asked)
