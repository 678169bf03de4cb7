"""Orch's home and a person's home of the test's own, a real sshd, and the real command in a process of its own."""

from __future__ import annotations

import os
import pty
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.conftest import Orch
from tests.lab.fixtures import MakeSshd, make_sshd, sshd  # noqa: F401
from workloads.contract.rundir import OrchHome


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    return OrchHome(tmp_path / "orch home")


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME with an empty ~/.ssh and no agent."""
    path = tmp_path / "person"
    (path / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return path


@pytest.fixture
def orch(home: OrchHome, person: Path, tmp_path: Path) -> Iterator[Orch]:
    command = Orch(home, tmp_path)
    yield command
    command.close()


class Terminal:
    """The command with a terminal for all three streams: a person who types."""

    def __init__(self, orch: Orch, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.process = orch.start(*args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.said = ""

    def until(self, word: str, timeout_s: float = 60.0) -> str:
        deadline = time.monotonic() + timeout_s
        while word not in self.said:
            if not select.select([self.master], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise AssertionError(f"{word!r} never came: {self.said!r}")
            self.said += self._read()
        return self.said

    def _read(self) -> str:
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        if not data:
            raise AssertionError(f"ended: {self.said!r}")
        return data.decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self, timeout_s: float = 60.0) -> int:
        try:
            while True:
                self.said += self._read()
        except AssertionError:
            return self.process.wait(timeout_s)

    def close(self) -> None:
        os.close(self.master)


@pytest.fixture
def terminal(orch: Orch) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:

        def make(*args: str) -> Terminal:
            made = Terminal(orch, *args)
            stack.callback(made.close)
            return made

        yield make
