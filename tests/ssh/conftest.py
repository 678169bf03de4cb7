"""A real sshd, a home directory of the test's own (no agent, nobody's ~/.ssh), transports that are closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pods.transport.ssh import SshTransport
from tests.lab.fixtures import MakeSshd, lab, make_lab, make_sshd, sshd  # noqa: F401
from tests.lab.sshd import Sshd
from workloads.contract.config.inventory import PodSpec

Connect = Callable[..., SshTransport]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(sshd, **changes to its spec)`: a transport, closed with the test."""
    with ExitStack() as stack:

        def make(
            sshd: Sshd, *, timeout_s: float = 5.0, config_file: Path | None = None, **changes: Any
        ) -> SshTransport:
            transport = SshTransport("box", spec_of(sshd, **changes), timeout_s=timeout_s, config_file=config_file)
            stack.callback(transport.close)
            return transport

        yield make


def spec_of(sshd: Sshd, **changes: Any) -> PodSpec:  # noqa: F811
    given = {"ssh": sshd.target, "host_key": sshd.host_key, "identity": str(sshd.identity), **changes}
    return PodSpec(**{k: v for k, v in given.items() if v is not None})
