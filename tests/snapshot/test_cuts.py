"""The far process is killed at every step of a push: what was sent stays sent, and the next push ends the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pods import snapshot as pushing
from pods.pod import FarPod
from pods.remote.code import materialize
from pods.remote.dispatch import Answer
from pods.snapshot import push_snapshot, push_tree, scan
from pods.transport.local import LocalTransport
from pods.tree import tree_hash
from tests.snapshot.conftest import tree_of, write
from workloads.contract.errors import UnreachableError
from workloads.contract.rundir import OrchHome


class Cut(FarPod):
    """Loses its process at call number `at`: before it is asked, while it works, or before its answer is heard."""

    def cut(self, at: int, when: str) -> None:
        self.left, self.when = at, when

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, data: bytes = b"", *, timeout_s: float = 20.0
    ) -> Answer:
        self.left -= 1
        if self.left:
            return super().call(op, args, data, timeout_s=timeout_s)
        self.connect()
        pid = int(self.hello["pid"])
        if self.when == "before":
            os.kill(pid, signal.SIGKILL)
        elif self.when == "after":
            super().call(op, args, data, timeout_s=timeout_s)
            self._drop()
            raise UnreachableError("E-POD-024", "the answer was lost")
        else:
            threading.Timer(0.002, os.kill, (pid, signal.SIGKILL)).start()
        try:
            return super().call(op, args, data, timeout_s=timeout_s)
        finally:
            time.sleep(0.01)  # a kill that came late hits nobody else


@pytest.fixture
def project(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pushing, "BATCH_BYTES", 100_000)
    write(repo, {f"p/{i}.py": os.urandom(2000) for i in range(100)} | {"big.bin": os.urandom(300_000)})
    return repo


@pytest.mark.parametrize(
    ("when", "steps"), [("before", (2, 4)), ("during", (3, 5, 6, 8)), ("after", (2, 3, 5, 6, 7, 8))]
)
def test_killed_at_a_step_it_goes_on(
    when: str, steps: Sequence[int], project: Path, home: OrchHome, tmp_path: Path
) -> None:
    """The eight steps: look, offer, 3 pieces, 2 batches, commit."""
    snapshot = scan(project, home)
    wanted = {k: v for k, v in tree_of(project).items() if not k.startswith(b".git/")}
    for at in steps:
        pod = Cut("far", LocalTransport(), root=str(tmp_path / "far"))
        pod.cut(at, when)
        try:
            try:
                push_snapshot(pod, snapshot)
            except UnreachableError:
                assert pod.left <= 0
            else:
                assert when == "during"  # the kill came too late: it has answered, and is gone now
                pod.close()
            pod.cut(-1, "never")
            again = push_snapshot(pod, snapshot)
            kept = min(max(at - 3, 0), 5)
            assert again.bytes_sent <= 500_000 - 100_000 * kept + 1  # a whole file's last byte may be sent again
            materialize(pod.home, snapshot.id, tmp_path / f"copy{at}")
            assert tree_of(tmp_path / f"copy{at}") == wanted
            shutil.rmtree(pod.home.code_store)  # the next one finds nothing
        finally:
            pod.close()


def test_killed_at_any_moment(project: Path, home: OrchHome, tmp_path: Path) -> None:
    snapshot = scan(project, home)
    dice = random.Random(7)
    sent = []
    for _ in range(12):
        pod = FarPod("far", LocalTransport(), root=str(tmp_path / "far"))
        pod.connect()
        timer = threading.Timer(dice.uniform(0.0, 0.03), os.kill, (int(pod.hello["pid"]), signal.SIGKILL))
        timer.start()
        try:
            sent.append(push_snapshot(pod, snapshot).files_sent)
        except UnreachableError:
            sent.append(-1)
        finally:
            timer.join()
            pod.close()
    pod = FarPod("far", LocalTransport(), root=str(tmp_path / "far"))
    try:
        push_snapshot(pod, snapshot)
        materialize(pod.home, snapshot.id, tmp_path / "copy")
        assert tree_of(tmp_path / "copy") == {k: v for k, v in tree_of(project).items() if not k.startswith(b".git/")}
        assert -1 in sent  # it was cut at least once
    finally:
        pod.close()


def test_orchs_own_tree_is_whole_or_not_there(own_tree: Path, tmp_path: Path) -> None:
    for at in (2, 3, 4, 5, 6):
        pod = Cut("far", LocalTransport(), root=str(tmp_path / "far"))
        pod.cut(at, "during")
        try:
            path = Path(push_tree(pod))
        except UnreachableError:
            pod.cut(-1, "never")
            found = [p for p in pod.home.trees.glob("*") if not p.name.startswith(".tmp_")]
            assert all(tree_hash(p) == p.name for p in found)
            path = Path(push_tree(pod))
        finally:
            pod.close()
        assert tree_hash(path) == path.name
