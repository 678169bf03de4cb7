"""A port of a pod here, on loopback only; the same work on many pods, each with an outcome of its own."""

from __future__ import annotations

import contextlib
import http.server
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.transport import tunnel as tunnels
from pods.transport.fleet import each
from pods.transport.tunnel import open_tunnel
from tests.lab.sshd import Sshd, free_port
from tests.ssh.conftest import Connect, MakeSshd
from workloads.contract.errors import OrchError, RemoteError, UnreachableError

ROOT = Path(__file__).parents[2]


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"hello " * 200_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def page() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def get(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        return len(answer.read())


def test_a_page_of_the_pod_is_read_here_over_the_one_connection(sshd: Sshd, connect: Connect, page: int) -> None:
    transport = connect(sshd)
    with open_tunnel(transport, "127.0.0.1", page) as tunnel:
        sizes = each(range(6), lambda _: get(tunnel.local_port))
        assert sizes == [1_200_000] * 6
        sshd.drop_connections()
        time.sleep(0.3)
        assert get(tunnel.local_port) == 1_200_000, "a lost connection is made again"
    assert sshd.log.read_text().count("Accepted publickey") == 2
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=2)


def test_it_listens_on_loopback_only(sshd: Sshd, connect: Connect, page: int) -> None:
    with open_tunnel(connect(sshd), "127.0.0.1", page) as tunnel:
        wanted = f":{tunnel.local_port:04X}"
        rows = [r.split() for name in ("tcp", "tcp6") for r in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
        assert [r[1] for r in rows if r[1].endswith(wanted) and r[3] == "0A"] == ["0100007F" + wanted]


def test_a_port_where_nobody_listens_or_that_may_not_be_forwarded(
    make_sshd: MakeSshd, connect: Connect, page: int
) -> None:
    for sshd, port in ((make_sshd("a"), free_port()), (make_sshd("b", extra=["AllowTcpForwarding no"]), page)):
        with open_tunnel(connect(sshd), "127.0.0.1", port) as tunnel:
            with socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=60) as sock:
                assert sock.recv(1) == b""
            assert isinstance(tunnel.last_error, RemoteError) and tunnel.last_error.code == "E-SSH-050"


def test_closing_ends_connections_under_way_and_their_threads(sshd: Sshd, connect: Connect) -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tunnel = open_tunnel(connect(sshd), "127.0.0.1", silent.getsockname()[1])
        held = [socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=60) for _ in range(5)]
        far = [silent.accept()[0] for _ in held]
        tunnel.close()
        tunnel.close()
        for sock in held:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
            sock.close()
        for sock in far:
            sock.settimeout(5)
            assert sock.recv(1) == b""
            sock.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before + 1:  # the connection to the pod itself
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.02)


def test_the_number_of_connections_is_bounded(sshd: Sshd, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "MAX_CONNECTIONS", 2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        open_tunnel(connect(sshd), "127.0.0.1", silent.getsockname()[1]) as tunnel,
    ):
        held = [socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=60) for _ in range(2)]
        far = [silent.accept()[0] for _ in held]
        with socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=60) as third:
            assert third.recv(1) == b""
        assert tunnel.refused == 1
        for sock in [*held, *far]:
            sock.close()


def test_each_outcome_is_its_own_and_in_order() -> None:
    def work(i: int) -> int:
        time.sleep(0.02 * (5 - i % 5))
        if i == 3:
            raise UnreachableError("E-SSH-032", "three is away")
        if i == 4:
            raise ZeroDivisionError("four")
        return i * i

    done = each(range(20), work)
    assert [d for i, d in enumerate(done) if i not in (3, 4)] == [i * i for i in range(20) if i not in (3, 4)]
    assert isinstance(done[3], UnreachableError)
    assert isinstance(done[4], OrchError) and done[4].code == "E-BUG-001" and "four" in done[4].what
    assert each([], work) == []


def test_all_at_once_but_never_more_than_the_limit() -> None:
    together = threading.Barrier(30)
    each(range(30), lambda _: together.wait(60))  # none goes on before all are there
    now, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1

    each(range(9), work, limit=3)
    assert most == 3


def test_ctrl_c_ends_a_tunnel_and_the_program_that_holds_it(sshd: Sshd, page: int, home: Path) -> None:
    """With a connection under way, and a thread of the fleet that still waits."""
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored under nohup
from pods.transport.fleet import each
from pods.transport.ssh import SshTransport
from pods.transport.tunnel import open_tunnel
from workloads.contract.config.inventory import PodSpec
spec = PodSpec(ssh={sshd.target!r}, host_key={sshd.host_key!r}, identity={str(sshd.identity)!r})
transport = SshTransport("box", spec)
with open_tunnel(transport, "127.0.0.1", {page}) as tunnel:
    print(tunnel.local_port, flush=True)
    each([1], lambda _: transport.run(["sleep", "100"], timeout_s=100))
"""
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        port = int(process.stdout.readline())
        assert get(port) == 1_200_000
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            process.send_signal(signal.SIGINT)
            started = time.monotonic()
            assert process.wait(timeout=120) == -signal.SIGINT
        assert time.monotonic() - started < 30
        assert process.stderr.read().rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
