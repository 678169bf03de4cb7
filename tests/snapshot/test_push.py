"""Code arrives whole, nothing is sent twice, and a run gets a copy of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pods import snapshot as pushing
from pods.pod import FarPod, LocalPod
from pods.remote.code import materialize
from pods.remote.dispatch import Answer
from pods.snapshot import FileChanged, push_code, push_snapshot, push_tree, scan
from pods.transport.local import LocalTransport
from pods.tree import tree_hash
from tests.snapshot.conftest import git, tree_of, write
from workloads.contract.errors import IntegrityError
from workloads.contract.rundir import OrchHome, make_run_id


class Told:
    """A pod that writes down what it is asked."""

    def __init__(self, pod: FarPod) -> None:
        self.pod, self.asked = pod, []
        self.name, self.transport, self.close = pod.name, pod.transport, pod.close
        self.before: dict[str, Any] = {}

    asked: list[tuple[str, Mapping[str, Any], int]]

    @property
    def home(self) -> OrchHome:
        return self.pod.home

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, data: bytes = b"", *, timeout_s: float = 20
    ) -> Answer:
        self.asked.append((op, args or {}, len(data)))
        if (hook := self.before.pop(op, None)) is not None:
            hook()
        return self.pod.call(op, args, data, timeout_s=timeout_s)

    def ops(self) -> list[str]:
        ops = [op for op, _, _ in self.asked]
        self.asked.clear()
        return ops


def fill(folder: Path) -> None:
    write(folder, {f"pkg{i % 7}/m{i}.py": f"x = {i}\n" for i in range(200)})
    write(folder, {"same1.bin": b"s" * 5000, "d/same2.bin": b"s" * 5000, "empty": b"", "run.sh": "#!/bin/sh\n"})
    (folder / "run.sh").chmod(0o755)
    os.symlink("../run.sh", folder / "d" / "link")
    write(folder, {"big.bin": os.urandom(9 << 20)})


def test_first_second_and_one_changed_file(repo: Path, home: OrchHome, pod: FarPod, tmp_path: Path) -> None:
    fill(repo)
    told = Told(pod)
    first = scan(repo, home)
    pushed = push_snapshot(told, first, home=home)
    assert pushed.files_sent == 204  # two names of one content are one file
    assert pushed.bytes_sent == first.size_bytes - 5000
    materialize(pod.home, first.id, tmp_path / "copy")
    wanted = {k: v for k, v in tree_of(repo).items() if not k.startswith(b".git/")}
    assert tree_of(tmp_path / "copy") == wanted

    told.ops()
    assert push_snapshot(told, scan(repo, home), home=home).files_sent == 0
    assert told.ops() == ["code.look"]

    write(repo, {"pkg3/m3.py": "changed\n"})
    (repo / "pkg4/m4.py").unlink()
    pushed = push_snapshot(told, second := scan(repo, home), home=home)
    assert (pushed.files_sent, pushed.bytes_sent) == (1, 8)
    offer = next(row for row in told.asked if row[0] == "code.offer")
    assert offer[1]["base"] == first.id and offer[2] < 300  # the manifest travels as a difference
    materialize(pod.home, second.id, tmp_path / "copy2")
    assert tree_of(tmp_path / "copy2").keys() == wanted.keys() - {b"pkg4/m4.py"}


def test_a_base_that_the_pod_lost_costs_one_question(repo: Path, home: OrchHome, pod: FarPod) -> None:
    fill(repo)
    first = scan(repo, home)
    push_snapshot(pod, first, home=home)
    (pod.home.code_store / f"{first.id}.json").write_text("{")
    write(repo, {"a.py": "new"})
    told = Told(pod)
    assert push_snapshot(told, scan(repo, home), home=home).files_sent == 1
    assert told.ops() == ["code.look", "code.offer", "code.offer", "code.blobs", "code.commit"]


name = st.binary(min_size=1, max_size=60).filter(lambda b: b not in (b".", b"..") and not set(b"/\0") & set(b))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(name, min_size=1, max_size=8), parent=name)
def test_any_name_that_a_disk_takes(names: set[bytes], parent: bytes, tmp_path: Path, pod: FarPod) -> None:
    top = tmp_path / os.urandom(4).hex()
    folder = os.path.join(os.fsencode(top), b"d" + parent)
    os.makedirs(folder)
    for n in names:
        with open(os.path.join(folder, b"n" + n), "wb") as f:
            f.write(n)
    git(top, "init", "-q")
    home = OrchHome(tmp_path / "home")
    pushed = push_snapshot(pod, scan(top, home), home=home)
    copy = tmp_path / os.urandom(4).hex()
    materialize(pod.home, pushed.id, copy)
    assert tree_of(copy) == {k: v for k, v in tree_of(top).items() if not k.startswith(b".git/")}


def test_a_file_saved_meanwhile_is_seen(repo: Path, home: OrchHome, pod: FarPod, tmp_path: Path) -> None:
    fill(repo)
    for name in ("big.bin", "pkg1/m1.py"):
        old = scan(repo, home)
        content = (repo / name).read_bytes()
        write(repo, {name: content[:-1] + b"?"})
        with pytest.raises(FileChanged, match="changed") as e:
            push_snapshot(pod, old, home=home)
        assert e.value.where == name
    told = Told(pod)
    write(repo, {"late.py": "1"})
    told.before["code.offer"] = lambda: write(repo, {"late.py": "2"})
    found, pushed = push_code(told, repo, home)
    assert pushed.id == found.id == scan(repo, home).id
    materialize(pod.home, found.id, tmp_path / "copy")
    assert (tmp_path / "copy" / "late.py").read_text() == "2"


def test_two_at_once(repo: Path, home: OrchHome, pod: FarPod, tmp_path: Path) -> None:
    fill(repo)
    snapshot = scan(repo, home)
    others = [FarPod("far", LocalTransport(), root=str(tmp_path / "far")) for _ in range(3)]
    failures: list[BaseException] = []

    def push(one: FarPod) -> None:
        try:
            push_snapshot(one, snapshot)
        except BaseException as e:
            failures.append(e)
        finally:
            one.close()

    threads = [threading.Thread(target=push, args=(p,)) for p in others]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert failures == []
    materialize(pod.home, snapshot.id, tmp_path / "copy")
    assert list(pod.home.code_store.rglob("*.part")) == [] == list(pod.home.code_store.rglob("*.offer"))


def test_a_run_gets_a_copy_that_it_may_write_to(repo: Path, home: OrchHome, pod: FarPod) -> None:
    write(repo, {"sub/train.py": "open('new', 'w'); open('train.py', 'a').write('#')\n"})
    snapshot, _ = push_code(pod, repo / "sub", home)
    runs = [make_run_id("x"), make_run_id("y")]
    for run in runs:
        row = {"run": run, "run_json": {"v": 1}, "resolved_config": {}, "secrets": {"T": "secret-value"}}
        answer = pod.call("runs.stage", {**row, "code": snapshot.id})
        assert answer.fields["created"] is True
    first, second = (pod.home.run(r) for r in runs)
    subprocess.run([sys.executable, "train.py"], cwd=first.code / snapshot.cwd, check=True)
    assert (first.code / "sub/new").exists() and (first.code / "sub/train.py").read_text().endswith("#")
    assert (second.code / "sub/train.py").read_bytes() == (repo / "sub/train.py").read_bytes()
    assert first.secrets.stat().st_mode & 0o777 == 0o600
    assert pod.call("secrets.read", {"run": runs[0]}).fields == {"values": {"T": "secret-value"}}
    assert pod.call("code.look", {"id": snapshot.id}).fields["there"] is True


def test_orchs_own_tree(pod: FarPod, own_tree: Path) -> None:
    told = Told(pod)
    path = push_tree(told)
    assert tree_hash(Path(path)) == tree_hash(own_tree) == Path(path).name
    code = f"import sys; sys.path.insert(0, {path!r}); import pods.keeper.__main__ as m; print(m.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(path)
    told.ops()
    assert push_tree(told) == path and told.ops() == ["home.tree"]
    with pytest.raises(IntegrityError, match="hash to something else"):
        snapshot = pushing.tree_snapshot(own_tree)
        pod.call("code.tree", {"hash": "0" * 16, "id": snapshot.id})
    assert [p.name for p in pod.home.trees.iterdir()] == [Path(path).name]
    write(own_tree, {"pods/new.py": "1", "pods/tree.py": "changed meanwhile"})
    shutil.rmtree(path)
    with pytest.raises(FileChanged, match="own files changed"):
        push_tree(told)


def test_this_machine_is_a_pod_too(repo: Path, home: OrchHome, own_tree: Path, tmp_path: Path) -> None:
    write(repo, {"a.py": "1"})
    here = LocalPod(OrchHome(tmp_path / "here"), LocalTransport())
    assert push_snapshot(here, scan(repo, home)).files_sent == 1
    assert Path(push_tree(here)).parent == here.home.trees


@pytest.mark.long
def test_ten_thousand_files(tmp_path: Path, home: OrchHome, pod: FarPod) -> None:
    """What is read and sent; how long that takes is `make bench-ssh`'s to say."""
    folder = tmp_path / "many"
    for i in range(100):
        write(folder, {f"p{i}/m{j}.py": os.urandom(1500) + b"x = 1\n" * 250 for j in range(100)})
    git(folder, "init", "-q")
    time.sleep(2.1)  # younger files are hashed again
    told = Told(pod)
    first = scan(folder, home)
    pushed = push_snapshot(told, first, home=home)
    assert (first.hashed, pushed.files_sent, pushed.bytes_sent) == (10_000, 10_000, 10_000 * 3000)
    assert len(told.ops()) <= 12  # by the thousand or by 4 MiB, and no file has a request of its own

    unchanged = scan(folder, home)
    assert (unchanged.hashed, push_snapshot(told, unchanged, home=home).files_sent) == (0, 0)
    assert [(op, size) for op, _, size in told.asked] == [("code.look", 0)]
    told.ops()

    write(folder, {"p5/m5.py": "changed"})
    changed = scan(folder, home)
    assert (changed.hashed, push_snapshot(told, changed, home=home).files_sent) == (1, 1)
    assert sum(size for _, _, size in told.asked) < 1000
    assert told.ops() == ["code.look", "code.offer", "code.blobs", "code.commit"]
