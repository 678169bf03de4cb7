"""A pod that is a second process on this machine, with a home of its own, and runs made there with the real writers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from orchestrator.runs.source import FarSource
from pods.pod import FarPod
from pods.transport.local import LocalTransport
from tests.cli.conftest import Made, make_run
from workloads.contract.files import atomic_write_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome, RunDir


@dataclass
class Far:
    """The home of a pod, the process there, and the operator's home."""

    home: OrchHome
    there: OrchHome
    pod: FarPod

    def make(self, name: str = "tiny", **more: object) -> Made:
        made = make_run(self.there, name, **more)
        return made

    def source(self, run: RunDir, into: RunDir | None = None) -> FarSource:
        return FarSource(self.home, into or self.home.mirrored(run.run_id), "box", lambda: self.pod)

    def kill(self) -> None:
        """End the process on the pod, as a cut connection does."""
        os.kill(int(self.pod.hello["pid"]), 9)


def keeper_here(home: OrchHome) -> None:
    """This process stands for the keeper of `home`, so that none is started."""
    home.keeper.mkdir(parents=True)
    row = {"v": 1, **asdict(ProcId.me()), "socket": str(home.keeper / "none")}
    atomic_write_json(home.keeper_record, row, durable=False)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Following has no end of its own: a test that hangs fails after 90 s."""

    def ring(*_: object) -> None:
        raise TimeoutError("the test did not end in 90 s")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(90)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    home, there = OrchHome(tmp_path / "home"), OrchHome(tmp_path / "pod home")
    for h in (home, there):
        h.path.mkdir(mode=0o700)
        keeper_here(h)
    pod = FarPod("box", LocalTransport(), root=str(there.path))
    yield Far(home, there, pod)
    pod.close()


def same(run: RunDir, copy: RunDir) -> list[str]:
    """Names of files of which the copy differs from the run."""
    differing = []
    for path in sorted(p for p in run.path.rglob("*") if p.is_file()):
        name = path.relative_to(run.path)
        there = copy.path / name
        if not there.exists() or there.read_bytes() != path.read_bytes():
            differing.append(str(name))
    return differing
