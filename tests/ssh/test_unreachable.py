"""What is said of a pod that cannot be reached, how long that takes, and what is worth another try."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pods.transport.fleet import each
from pods.transport.ssh import SshTransport
from tests.lab.fixtures import MakeLab
from tests.lab.sshd import Sshd, free_port
from tests.ssh.conftest import Connect, MakeSshd, spec_of
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import OrchError, RefusedError, UnreachableError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKPzx5poKyjohHcP634JJWCQebDacnj2JUCepgrwjTIw"


def told(ssh: str, timeout_s: float = 1.0, reach_s: float | None = None) -> tuple[OrchError, float]:
    transport = SshTransport("box", PodSpec(ssh=ssh, host_key=KEY), timeout_s=timeout_s, reach_s=reach_s)
    started = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        transport.run(["true"], timeout_s=60)
    assert caught.value.exit_code == 4
    assert caught.value.fix and caught.value.fix.startswith("ssh -v -p ")
    return caught.value, time.monotonic() - started


@contextlib.contextmanager
def server(says: bytes, *, close: bool) -> Iterator[int]:
    """What accepts, says something and then closes, or keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    sock.sendall(says)
                    if close:
                        sock.close()
                    else:
                        held.append(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        for sock in held:
            sock.close()


def test_refused() -> None:
    port = free_port()
    e, took_s = told(f"root@127.0.0.1:{port}")
    assert e.code == "E-SSH-031" and f"127.0.0.1:{port} refuses the connection" in e.what
    assert e.where == f"root@127.0.0.1:{port}" and e.value == "address 127.0.0.1"
    assert took_s < 1, "it is not tried again"


def test_no_such_host() -> None:
    e, took_s = told("root@no-such-host.invalid", 5.0)
    assert e.code == "E-SSH-030" and "no-such-host.invalid" in e.what
    assert took_s < 6


def test_a_resolver_that_does_not_answer_is_waited_for_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*args: object, **more: object) -> object:
        release.wait(timeout=120)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    e, took_s = told("root@slow", 0.5)
    release.set()
    assert e.code == "E-SSH-030" and "0.5 s" in e.what and took_s < 3


def test_a_queue_that_takes_nobody_is_a_timeout() -> None:
    """A full backlog: SYNs are dropped, as behind a firewall that says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            waiting.append(sock)
        e, took_s = told(f"root@127.0.0.1:{address[1]}")
        for sock in waiting:
            sock.close()
    assert e.code == "E-SSH-032" and "does not answer in 1 s" in e.what
    assert 0.9 < took_s < 3


def test_no_route() -> None:
    e, _ = told("root@[fe80::1]:22")
    assert e.code in ("E-SSH-033", "E-SSH-032"), e.what


def test_an_sshd_that_hangs_is_told_from_one_that_is_gone(sshd: Sshd, connect: Connect) -> None:
    with sshd.hung():
        started = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            connect(sshd, timeout_s=1.0).run(["true"], timeout_s=60)
        assert time.monotonic() - started < 20
    assert caught.value.code == "E-SSH-034" and "sshd does not answer" in caught.value.what
    assert caught.value.value == "waited 1 s"
    assert connect(sshd).run(["true"], timeout_s=60).ok


@pytest.mark.long
def test_what_hangs_after_its_banner_or_is_no_sshd_at_all() -> None:
    with server(b"SSH-2.0-x\r\n", close=False) as port:
        assert "key exchange" in told(f"r@127.0.0.1:{port}", 0.5)[0].what
    with server(b"HTTP/1.1 400 Bad Request\r\n" * 200, close=False) as port:
        assert told(f"r@127.0.0.1:{port}", 2.0)[0].code == "E-SSH-036"
    with server(b"SSH-2.0-x\r\n" + random.Random(1).randbytes(5000), close=False) as port:
        assert told(f"r@127.0.0.1:{port}", 1.0)[0].exit_code == 4


def test_a_sign_of_life_is_waited_for_less_long_and_what_follows_is_not() -> None:
    with server(b"", close=False) as port:
        e, took_s = told(f"r@127.0.0.1:{port}", 3.0, reach_s=0.3)
        assert e.code == "E-SSH-034" and e.value == "waited 0.3 s" and took_s < 2
    with server(b"SSH-2.0-x\r\n", close=False) as port:
        e, took_s = told(f"r@127.0.0.1:{port}", 1.0, reach_s=0.2)
        assert "key exchange" in e.what and e.value == "waited 1 s" and took_s > 0.9


@pytest.mark.long
def test_dropped_at_once_is_tried_again_within_bounds() -> None:
    with server(b"", close=True) as port:
        e, took_s = told(f"r@127.0.0.1:{port}", 1.0)
    assert e.code == "E-SSH-035" and "at once" in e.what
    assert 0.3 < took_s < 4


def test_a_connection_in_use_that_hangs_costs_its_timeout(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd, timeout_s=1.0)
    assert transport.run(["true"], timeout_s=60).ok
    with sshd.hung():
        started = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            transport.run(["true"], timeout_s=1)
        assert caught.value.code == "E-SSH-041"
        assert time.monotonic() - started < 20
    assert transport.run(["true"], timeout_s=60).ok


def test_twenty_at_once_to_an_sshd_that_takes_few(make_sshd: MakeSshd) -> None:
    sshd = make_sshd(max_startups="3:50:10")
    transports = [SshTransport(f"p{i}", spec_of(sshd), timeout_s=10) for i in range(20)]
    try:
        done = each(transports, lambda t: t.run(["true"], timeout_s=60).exit_code)
    finally:
        for t in transports:
            t.close()
    assert done == [0] * 20
    assert "drop connection" in sshd.log.read_text(), "it did turn some away"


def test_a_refusal_is_not_tried_again(sshd: Sshd, connect: Connect) -> None:
    with pytest.raises(RefusedError):
        connect(sshd, host_key=KEY).run(["true"], timeout_s=60)
    assert sshd.log.read_text().count("Connection from") == 1


def loss(transport: SshTransport, stdin: bytes, losses: list[tuple[str, float]]) -> None:
    """A command that does not end by itself: how it failed, and after how long."""
    started = time.monotonic()
    try:
        transport.run(["sleep", "300"], timeout_s=60, stdin=stdin)
    except OrchError as e:
        losses.append((e.code, time.monotonic() - started))


@pytest.mark.lab
@pytest.mark.long
def test_a_cut_is_noticed_within_15_seconds(make_lab: MakeLab) -> None:
    """While a command runs (nothing under way: keepalive) and while one is sent input (TCP_USER_TIMEOUT)."""
    lab = make_lab(1)
    pod = lab["pod-a"]
    with lab.inside():
        for stdin in (b"", b"x" * 50_000_000):
            transport = SshTransport("pod-a", pod.spec(lab.identity))
            transport.connect()
            losses: list[tuple[str, float]] = []
            thread = threading.Thread(target=loss, args=(transport, stdin, losses))
            thread.start()
            time.sleep(1)
            with pod.cut():
                thread.join(30)
            assert losses and losses[0][0] == "E-SSH-040" and losses[0][1] < 1 + 15, losses
            assert transport.run(["true"], timeout_s=60).ok
            transport.close()


@pytest.mark.long
@pytest.mark.lab
def test_silence_on_the_network_is_a_timeout_and_two_addresses_are_told_apart(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    a, b = lab["pod-a"], lab["pod-b"]
    with lab.inside():
        with a.cut():
            outcome = each([a, b], lambda p: SshTransport(p.name, p.spec(lab.identity), timeout_s=2).connect())
        assert isinstance(outcome[0], UnreachableError) and outcome[1] is None
        assert outcome[0].code in ("E-SSH-032", "E-SSH-033"), outcome[0].render()
        swapped = a.spec(lab.identity).model_copy(update={"ssh": b.spec(lab.identity).ssh})
        with pytest.raises(RefusedError) as caught:
            SshTransport("pod-a", swapped).connect()
        assert caught.value.code == "E-SSH-012"


def test_what_only_reads_the_inventory_loads_no_ssh() -> None:
    code = "import sys, pods.transport.target, pods.transport.hostkeys, pods.transport.fleet, pods.inventory;" + (
        "sys.exit(any(m in sys.modules for m in ('paramiko', 'fabric', 'cryptography')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
