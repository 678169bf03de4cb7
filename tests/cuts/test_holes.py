"""A connection that breaks while its window is opened loses what was just read: nothing behind the hole counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from pods.pod import FarPod
from pods.transport.ssh import SshTransport
from tests.lab.fixtures import make_sshd, sshd  # noqa: F401
from tests.lab.sshd import Sshd
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import UnreachableError

SIZE = 8 << 20


@pytest.fixture
def transport(sshd: Sshd) -> Iterator[SshTransport]:  # noqa: F811
    spec = PodSpec(ssh=sshd.target, host_key=sshd.host_key, identity=str(sshd.identity))
    made = SshTransport("box", spec)
    yield made
    made.close()


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The third window that is opened meets a broken connection, as paramiko meets it; those after it do not."""
    sent: list[int] = []
    real = paramiko.Transport._send_user_message

    def send(self: paramiko.Transport, message: Any) -> None:
        if message.asbytes()[:1] == paramiko.common.cMSG_CHANNEL_WINDOW_ADJUST:
            sent.append(1)
            if len(sent) == 3:
                raise EOFError
        real(self, message)

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", send)
    return sent


def test_the_output_of_a_command_with_a_hole_is_no_output(transport: SshTransport, breaking: list[int]) -> None:
    with pytest.raises(UnreachableError) as error:
        transport.run([sys.executable, "-c", f"print('x' * {SIZE})"], timeout_s=30)
    assert error.value.code == "E-SSH-040" and len(breaking) >= 3


def test_an_answer_with_a_hole_is_a_lost_connection_and_no_nonsense(
    transport: SshTransport, breaking: list[int], tmp_path: Path
) -> None:
    process = transport.start([sys.executable, "-c", f"print('x' * {SIZE})"], timeout_s=30)
    with pytest.raises(UnreachableError) as error:
        for _ in range(10_000):
            process.read(timeout_s=10)
    assert error.value.code == "E-SSH-040"
    process.close()
    pod = FarPod("box", transport, root=str(tmp_path / "root"), python=sys.executable)
    assert pod.home.path == tmp_path / "root"  # the next one is whole
    pod.close()
