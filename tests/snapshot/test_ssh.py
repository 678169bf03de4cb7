"""The same over a real sshd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.access import open_pod
from pods.pod import Pod
from pods.remote.code import materialize
from pods.snapshot import push_code, push_tree
from tests.lab.sshd import Sshd, why_no_sshd
from tests.snapshot.conftest import tree_of, write
from workloads.contract.config.inventory import PodSpec
from workloads.contract.rundir import OrchHome

pytestmark = pytest.mark.skipif(why_no_sshd() is not None, reason=why_no_sshd() or "")


@pytest.fixture
def box(tmp_path: Path, home: OrchHome) -> Iterator[Pod]:
    with Sshd(tmp_path / "sshd") as sshd:
        spec = PodSpec(
            ssh=sshd.target, host_key=sshd.host_key, identity=str(sshd.identity), root=str(tmp_path / "far")
        )  # fmt: skip
        pod = open_pod(home, "box", spec)
        yield pod
        pod.close()


def test_code_and_orchs_own_tree(box: Pod, repo: Path, home: OrchHome, own_tree: Path, tmp_path: Path) -> None:
    write(repo, {f"p/{i}.py": os.urandom(500) for i in range(300)} | {"big.bin": os.urandom(5 << 20)})
    snapshot, pushed = push_code(box, repo, home)
    assert pushed.files_sent == 301
    materialize(box.home, snapshot.id, tmp_path / "copy")
    assert tree_of(tmp_path / "copy") == {k: v for k, v in tree_of(repo).items() if not k.startswith(b".git/")}
    write(repo, {"p/7.py": "new"})
    assert push_code(box, repo, home)[1].files_sent == 1
    assert Path(push_tree(box)).is_relative_to(tmp_path / "far")
