"""Pages of a pod on this machine: the life of what serves them, and whose pod has no dashboard."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.inventory.tensorboard import Page, on_pod
from pods.transport.local import LocalTransport
from pods.transport.ssh import SshTransport
from tests.cli.conftest import Orch
from tests.inventory.conftest import MakeSshd
from tests.inventory.test_commands import add
from tests.lab.sshd import Sshd
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import RemoteError

# what a TensorBoard is to orch: a program that listens on loopback, says its address, and runs until it is ended
LISTENS = ["/bin/sh", "-c", f"exec {sys.executable} -u -m http.server 0 --bind 127.0.0.1", "sh"]


def get(url: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


def gone(check: Callable[[], object], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not check():
            return True
        time.sleep(0.05)
    return False


def transport_of(sshd: Sshd) -> SshTransport:
    return SshTransport("box", PodSpec(ssh=sshd.target, host_key=sshd.host_key, identity=str(sshd.identity)))


def test_it_ends_with_the_command_and_with_the_connection(sshd: Sshd) -> None:
    transport = transport_of(sshd)
    try:
        for end in ("close", "cut"):
            page = Page.start(transport, LISTENS, "/nowhere")
            assert get(f"http://127.0.0.1:{page.port}/") == 200
            assert sshd.commands()
            if end == "close":
                page.close()
            else:
                sshd.drop_connections()
            assert gone(sshd.commands), f"left after {end}"
    finally:
        transport.close()


def test_one_that_does_not_end_when_told_is_ended(sshd: Sshd) -> None:
    transport = transport_of(sshd)
    deaf = ["/bin/sh", "-c", "trap '' TERM; exec \"$@\"", "sh", *LISTENS]
    try:
        Page.start(transport, deaf, "/nowhere").close()
        assert sshd.commands()
        assert gone(sshd.commands)
    finally:
        transport.close()


def test_one_that_says_much_is_listened_to(tmp_path: Path) -> None:
    """More than a pipe holds: it would hang if nobody read what it says."""
    end = tmp_path / "end"
    talks = f"echo http://127.0.0.1:1234/; head -c 1000000 /dev/zero; touch {end}; sleep 600"
    page = Page.start(LocalTransport(), ["/bin/sh", "-c", talks], "/nowhere")
    try:
        assert page.port == 1234 and not end.exists()

        def silent() -> bool:
            page.look()
            return not end.exists()

        assert gone(silent)
    finally:
        page.close()


@pytest.mark.parametrize("argv", [["/bin/sh", "-c", "echo no module; exit 1"], ["/bin/sh", "-c", ":"]])
def test_one_that_ends_at_once_is_told(sshd: Sshd, argv: list[str]) -> None:
    transport = transport_of(sshd)
    try:
        with pytest.raises(RemoteError) as e:
            Page.start(transport, argv, "/nowhere")
        assert e.value.code == "E-PODS-085"
        with pytest.raises(RemoteError):
            Page.start(LocalTransport(), argv, "/nowhere")
        assert gone(sshd.commands)
    finally:
        transport.close()


def test_it_is_looked_for_with_the_interpreters_of_the_run(sshd: Sshd) -> None:
    transport = transport_of(sshd)
    try:
        assert on_pod(transport, ["/nowhere/python", "sh"]) is None
    finally:
        transport.close()


@pytest.mark.long
def test_no_dashboard_without_ray(orch: Orch, make_sshd: MakeSshd) -> None:
    assert add(orch, "box", make_sshd(), "--python", sys.executable).code == 0
    for name in ("box", "local"):
        ran = orch("dashboard", name)
        assert ran.code == 6 and f"Ray is not up on pod {name}" in ran.err
    assert orch("dashboard").code == 2 and orch("dashboard", "nope").code == 2
