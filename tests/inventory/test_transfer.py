"""Files to a pod and back over a real connection, and pods that lie about what they have."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.inventory.listing import entries_of
from orchestrator.inventory.transfer import pull, push
from pods.pod import CALL_S, FarPod
from pods.remote.dispatch import Answer
from pods.transport.local import LocalTransport
from tests.cli.conftest import Orch
from tests.inventory.conftest import MakeSshd
from tests.inventory.test_commands import add
from workloads.contract.errors import ConflictError, IntegrityError, LocalError, OrchError, RemoteError
from workloads.contract.rundir import OrchHome

TREE = {"a": b"x" * 100, "sub/run.sh": b"#!/bin/sh\n", "sub/deep/é b": b"", "big": os.urandom(3 << 20)}


def quiet(*_: object) -> None:
    return


class Lying(FarPod):
    """A real process on the other side whose answers are changed on the way: a pod may say anything."""

    lies: Mapping[str, Any]
    asked: list[str]

    def call(self, op: str, args: Any = None, data: bytes = b"", *, timeout_s: float = CALL_S) -> Answer:
        answer = super().call(op, args, data, timeout_s=timeout_s)
        self.asked.append(op)
        return Answer({**answer.fields, **self.lies.get(op, {})}, answer.data)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Lying]:
    """The home of its process is here, and its paths are whole ones."""
    made = Lying("box", LocalTransport(), root=str(tmp_path / "there home"))
    made.lies, made.asked = {}, []
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    for name, data in TREE.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    (top / "sub" / "run.sh").chmod(0o755)
    (top / "empty").mkdir()
    (top / "link").symlink_to("/etc/passwd")
    os.mkfifo(top / "fifo")
    return top


def files(top: Path) -> dict[str, bytes]:
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in sorted(top.rglob("*")) if p.is_file()}


def test_a_tree_there_and_back(pod: Lying, tree: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    sent = push(pod, tree, str(there), quiet, quiet)
    assert files(there) == TREE and (there / "empty").is_dir()
    assert sorted(sent.left_out) == [("fifo", "no regular file"), ("link", "a link")] and sent.files == len(TREE)
    (there / "out").symlink_to("/etc")
    os.mkfifo(there / "pipe")
    (there / "bad\nname").write_text("x")
    Path(os.fsdecode(os.fsencode(there) + b"/\xff")).write_text("x")
    got = pull(pod, str(there), back, quiet, quiet)
    assert files(back) == TREE and (back / "empty").is_dir()
    assert sorted(n for n, _ in got.left_out) == ["out", "pipe"] and len(got.odd) == 2
    assert stat.S_IMODE((back / "sub" / "run.sh").stat().st_mode) == 0o755


def test_what_is_there_is_not_carried_again(pod: Lying, tree: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    for _ in range(2):
        pod.asked.clear()
        push(pod, tree, str(there), quiet, quiet)
    assert "files.append" not in pod.asked
    for _ in range(2):
        pod.asked.clear()
        pull(pod, str(there), back, quiet, quiet)
    assert "files.read" not in pod.asked
    (back / "a").write_bytes(b"y" * 100)  # as large, and another
    pull(pod, str(there), back, quiet, quiet)
    assert files(back) == TREE


def test_where_a_file_goes(pod: Lying, tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert push(pod, tree / "a", str(there / "x" / "b"), quiet, quiet).path == str(there / "x" / "b")
    assert push(pod, tree / "a", str(there / "x"), quiet, quiet).path == str(there / "x" / "a")
    assert push(pod, tree / "a", f"{there}/new/", quiet, quiet).path == str(there / "new" / "a")
    assert pull(pod, str(there / "x" / "b"), tmp_path, quiet, quiet).path == str(tmp_path / "b")
    assert pull(pod, str(there / "x" / "b"), tmp_path / "c" / "d", quiet, quiet).path == str(tmp_path / "c" / "d")
    with pytest.raises(ConflictError):
        push(pod, tree, str(there / "x" / "b"), quiet, quiet)
    with pytest.raises(LocalError):
        pull(pod, str(there), tmp_path / "b", quiet, quiet)
    with pytest.raises(RemoteError):
        pull(pod, str(there / "nothing"), tmp_path / "n", quiet, quiet)
    with pytest.raises(LocalError):
        push(pod, tmp_path / "nothing", str(there), quiet, quiet)


HOSTILE = [
    [["../evil", "file", 1, 0o644]],
    [["/etc/evil", "file", 1, 0o644]],
    [["a/../../evil", "file", 1, 0o644]],
    [["a//evil", "file", 1, 0o644]],
    [["./evil", "file", 1, 0o644]],
    [["", "file", 1, 0o644]],
    [["a\0b", "file", 1, 0o644]],
    [["x" * 256, "file", 1, 0o644]],
    [["/".join("a" * 200), "file", 1, 0o644]],
    [["a", "file", -1, 0o644]],
    [["a", "file", 1 << 61, 0o644]],
    [["a", "file", True, 0o644]],
    [["a", "file", 1.5, 0o644]],
    [["a", "socket", 1, 0o644]],
    [["a", "file", 1]],
    [["a", "file", 1, 0o644], ["a", "file", 1, 0o644]],
    [["a", "link", 1, 0o777], ["a/evil", "file", 1, 0o644]],
    [["a", "file", 1, 0o644], ["a/evil", "file", 1, 0o644]],
    "none",
    [3],
]


@pytest.mark.parametrize("entries", HOSTILE, ids=range(len(HOSTILE)))
def test_names_and_sizes_that_no_honest_pod_has(entries: Any) -> None:
    with pytest.raises(IntegrityError) as e:
        entries_of({"kind": "dir", "entries": entries}, "box:x")
    assert e.value.code == "E-PODS-061" and e.value.exit_code == 8


def test_nothing_is_fetched_from_a_hostile_pod(pod: Lying, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "in" / "target"
    source.mkdir()
    for entries in HOSTILE[:4]:
        pod.lies = {"files.list": {"entries": [["fine", "file", 0, 0o644], *entries]}}
        with pytest.raises(IntegrityError):
            pull(pod, str(source), target, quiet, quiet)
    assert not target.parent.exists() and set(pod.asked) == {"files.list"}


def test_a_size_that_does_not_fit_is_refused_before_a_byte(pod: Lying, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pod.lies = {"files.list": {"entries": [["a", "file", 1 << 50, 0o644]]}}
    with pytest.raises(LocalError) as e:
        pull(pod, str(source), tmp_path / "target", quiet, quiet)
    assert e.value.code == "E-PODS-059" and not (tmp_path / "target").exists()
    (tmp_path / "one").write_text("x")
    pod.lies = {"files.read": {"size": 1 << 50}}
    with pytest.raises(LocalError):
        pull(pod, str(tmp_path / "one"), tmp_path / "two", quiet, quiet)
    pod.lies = {"files.room": {"free": 10}}
    with pytest.raises(RemoteError) as r:
        push(pod, make_files(tmp_path / "p", {"a": b"x" * 11}), str(tmp_path / "q"), quiet, quiet)
    assert r.value.code == "E-PODS-052"


def make_files(top: Path, contents: Mapping[str, bytes]) -> Path:
    for name, data in contents.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return top


def test_a_file_that_is_longer_or_other_than_told(pod: Lying, tmp_path: Path) -> None:
    source = make_files(tmp_path / "source", {"a": b"x" * 5000})
    pod.lies = {"files.list": {"entries": [["a", "file", 10, 0o644]]}}
    with pytest.raises(IntegrityError):
        pull(pod, str(source), tmp_path / "target", quiet, quiet)
    assert files(tmp_path / "target") == {}
    pod.lies = {"files.digest": {"sha256": "0" * 64}}
    with pytest.raises(IntegrityError):
        pull(pod, str(source), tmp_path / "target", quiet, quiet)
    assert files(tmp_path / "target") == {}


def test_links_here_are_not_followed(pod: Lying, tmp_path: Path) -> None:
    source = make_files(tmp_path / "source", {"sub/a": b"new", "b": b"new"})
    outside = make_files(tmp_path / "outside", {"a": b"old", "b": b"old"})
    target = tmp_path / "target"
    target.mkdir()
    (target / "b").symlink_to(outside / "b")
    (target / "sub").symlink_to(outside)
    with pytest.raises(LocalError) as e:
        pull(pod, str(source), target, quiet, quiet)
    assert e.value.code == "E-PODS-058"
    (target / "sub").unlink()
    pull(pod, str(source), target, quiet, quiet)
    assert files(outside) == {"a": b"old", "b": b"old"} and (target / "b").read_bytes() == b"new"
    assert not (target / "b").is_symlink()


names = st.one_of(st.text(max_size=12), st.sampled_from(["..", ".", "a", "a/b", "a/..", "/a", "base64:AA==", "a\n"]))
row = st.one_of(
    st.tuples(names, st.sampled_from(["file", "dir", "link", "other", "x"]), st.integers(), st.integers()).map(list),
    st.lists(st.one_of(names, st.integers(), st.none()), max_size=5),
)


@given(st.lists(row, max_size=8), st.sampled_from(["dir", "file", "link", None, 3]))
def test_no_listing_leads_out(rows: list[Any], kind: Any) -> None:
    try:
        listing = entries_of({"kind": kind, "entries": rows}, "box:x")
    except OrchError as e:
        assert isinstance(e, IntegrityError)
        return
    top = Path("/top/target")
    for entry in listing.entries:
        assert Path(os.path.normpath(top / entry.name)).is_relative_to(top) and entry.name.isprintable()
        assert Path(os.path.normpath(top / entry.name)) != top and entry.kind in ("file", "dir")


def test_over_ssh(orch: Orch, make_sshd: MakeSshd, tree: Path, tmp_path: Path, home: OrchHome) -> None:
    """Relative paths lie below the home there; with MaxSessions 1, as some providers have it."""
    sshd = make_sshd(max_sessions=1)
    assert add(orch, "box", sshd).code == 0
    ran = orch("pods", "push", "box", str(tree), "data/x", "--json")
    assert ran.code == 0, ran.err
    assert files(tmp_path / "pod" / "home" / "data" / "x") == TREE and ran.json["files"] == len(TREE)
    ran = orch("pods", "pull", "box", "data/x", str(tmp_path / "back"))
    assert ran.code == 0 and files(tmp_path / "back") == TREE and f"{len(TREE)} files" in ran.out
    (tmp_path / "pod" / "home" / "data" / "x" / "\x1b[2J").write_text("x")
    ran = orch("pods", "pull", "box", "~/data/x", str(tmp_path / "back"))
    assert ran.code == 7 and "\x1b" not in ran.out + ran.err and "left out: \\x1b[2J" in ran.out
    assert orch("pods", "pull", "box", "nothing", str(tmp_path / "back")).code == 7


def test_ctrl_c_says_how_it_goes_on(orch: Orch, make_sshd: MakeSshd, tmp_path: Path, home: OrchHome) -> None:
    sshd = make_sshd()
    assert add(orch, "box", sshd).code == 0
    source = tmp_path / "large"
    with source.open("wb") as f:
        f.truncate(256 << 20)
    process = orch.start("pods", "push", "box", str(source), "large")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "pod" / "home").glob("*large*")) and time.monotonic() < deadline:
        time.sleep(0.02)  # until the first bytes are there
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "cut off; the same orch pods push goes on where it was" in err, err
    assert not (tmp_path / "pod" / "home" / "large").exists() and "Traceback" not in err
