"""Neither side trusts the other: a manifest may be meant to escape, a pod may ask for what is not its business."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.pod import FarPod, LocalPod
from pods.remote.dispatch import Answer
from pods.remote.manifest import Entry, folders, parse, snapshot_id, unpack_manifest
from pods.snapshot import push_snapshot, scan
from pods.transport.local import LocalTransport
from tests.snapshot.conftest import write
from workloads.contract.errors import IntegrityError, OrchError, RemoteError
from workloads.contract.rundir import OrchHome

DATA = b"evil"
SHA = hashlib.sha256(DATA).hexdigest()
FILE = ["ok.py", "f", SHA, 4]
EVIL: dict[str, list[Any]] = {
    "absolute": [["/etc/evil", "f", SHA, 4]],
    "up": [["../evil", "f", SHA, 4]],
    "up inside": [["a/../../evil", "f", SHA, 4]],
    "dot": [["./evil", "f", SHA, 4]],
    "empty": [["", "f", SHA, 4]],
    "double slash": [["a//b", "f", SHA, 4]],
    "trailing slash": [["a/", "f", SHA, 4]],
    "nul": [["a\0b", "f", SHA, 4]],
    "long": [["a" * 256, "f", SHA, 4]],
    "deep": [["a/" * 2000 + "b", "f", SHA, 4]],
    "surrogate pair half": [["\ud800", "f", SHA, 4]],
    "through a link": [["d", "l", ".", 0], ["d/evil", "f", SHA, 4]],
    "through a file": [["d", "f", SHA, 4], ["d/evil", "f", SHA, 4]],
    "link away": [["d", "l", "../..", 0]],
    "link from below away": [["d/e", "l", "../../x", 0]],
    "link absolute": [["d", "l", "/etc", 0]],
    "link nul": [["d", "l", "a\0", 0]],
    "link sized": [["d", "l", "a", 3]],
    "twice": [FILE, ["ok.py", "x", SHA, 4]],
    "kind": [["a", "p", SHA, 4]],
    "hash": [["a", "f", "../../../../etc/passwd", 4]],
    "size": [["a", "f", SHA, -1]],
    "size bool": [["a", "f", SHA, True]],
    "huge": [["a", "f", SHA, 1 << 40]],
    "many huge": [[f"a{i}", "f", SHA, 100 << 20] for i in range(20)],
    "row": [["a", "f", SHA]],
    "row text": ["abc"],
}


@pytest.fixture
def here(tmp_path: Path) -> LocalPod:
    return LocalPod(OrchHome(tmp_path / "here"), LocalTransport())


def id_of(rows: list[Any]) -> str:
    try:
        return snapshot_id([Entry(*row) for row in rows])
    except (TypeError, AttributeError, UnicodeEncodeError):
        return "0" * 16


@pytest.mark.parametrize("name", EVIL)
def test_a_manifest_that_leaves_its_directory_is_refused(name: str, here: LocalPod, tmp_path: Path) -> None:
    rows = EVIL[name]
    data = json.dumps({"rows": rows}).encode()
    before = {p for p in tmp_path.rglob("*") if "here" not in p.parts}
    with pytest.raises(RemoteError) as e:
        here.call("code.offer", {"id": id_of(rows), "base": None}, data)
    assert e.value.code == "E-CODE-002"
    here.call("code.blobs", {"blobs": [[SHA, 4]]}, DATA)
    with pytest.raises(OrchError):
        here.call("code.commit", {"id": id_of(rows)})
    assert {p for p in tmp_path.rglob("*") if "here" not in p.parts} == before


def test_a_difference_is_checked_as_a_whole(here: LocalPod) -> None:
    base = [["d/x", "f", SHA, 4]]
    here.call("code.blobs", {"blobs": [[SHA, 4]]}, DATA)
    assert here.call("code.offer", {"id": id_of(base), "base": None}, json.dumps({"rows": base}).encode()).fields
    evil = {"rows": [["d", "l", ".", 0]], "gone": []}  # a link where the base has a directory
    with pytest.raises(RemoteError, match="below a file or link"):
        here.call("code.offer", {"id": "0" * 16, "base": id_of(base)}, json.dumps(evil).encode())
    more: list[Any] = [{"rows": [[3, "f", SHA, 4]], "gone": []}, {"rows": 3}, [], 3, {"rows": [[]], "gone": 3}]
    for wrong in more:
        with pytest.raises(OrchError):
            here.call("code.offer", {"id": "0" * 16, "base": id_of(base)}, json.dumps(wrong).encode())


CALLS: list[tuple[str, dict[str, Any], bytes]] = [
    ("code.look", {"id": "../../../etc/passwd"}, b""),
    ("code.look", {"id": 3}, b""),
    ("code.offer", {"id": "0" * 16, "base": "../x"}, b"{}"),
    ("code.offer", {"id": "0" * 16, "base": None}, b"["),
    ("code.offer", {"id": "0" * 16, "base": None}, json.dumps({"rows": [FILE]}).encode()),
    ("code.blobs", {"blobs": [["../../../x", 4]]}, DATA),
    ("code.blobs", {"blobs": [["0" * 64, 4]]}, DATA),
    ("code.blobs", {"blobs": [[SHA, 5]]}, DATA),
    ("code.blobs", {"blobs": [[SHA, 9], [SHA, -5]]}, DATA),
    ("code.blobs", {"blobs": [[SHA]]}, DATA),
    ("code.blobs", {"blobs": 3}, DATA),
    ("code.piece", {"sha256": SHA, "size": 4, "offset": 1}, DATA),
    ("code.piece", {"sha256": SHA, "size": 4, "offset": -1}, b"x"),
    ("code.piece", {"sha256": SHA, "size": 1 << 40, "offset": 0}, DATA),
    ("code.piece", {"sha256": "x" * 64, "size": 4, "offset": 0}, DATA),
    ("code.piece", {"sha256": SHA, "size": 4, "offset": 0}, b"evil"[::-1]),
    ("code.piece", {"sha256": SHA, "size": 8, "offset": 4}, DATA),
    ("code.commit", {"id": "0" * 16}, b""),
    ("code.tree", {"hash": "../../x", "id": "0" * 16}, b""),
    ("code.tree", {"hash": "0" * 16, "id": "0" * 16}, b""),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_calls_that_cannot_be_meant(number: int, here: LocalPod) -> None:
    op, args, data = CALLS[number]
    with pytest.raises(OrchError):
        here.call(op, args, data)
    assert not [p for p in here.home.code_store.rglob("*") if p.is_file() and len(p.name) == 64]


def test_a_wrong_size_does_not_cost_a_good_object(here: LocalPod) -> None:
    here.call("code.blobs", {"blobs": [[SHA, 4]]}, DATA)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            here.call("code.blobs", {"blobs": [[SHA, 5]]}, b"other")
    rows = [FILE]
    answer = here.call("code.offer", {"id": id_of(rows), "base": None}, json.dumps({"rows": rows}).encode())
    assert answer.fields["missing"] == []


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["f", "l", "x", SHA, "a/b", ".."]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["rows", "gone"]), inner, max_size=2),
    max_leaves=20,
)


@given(json_like)
def test_any_json_is_a_manifest_or_refused(value: Any) -> None:
    try:
        entries = unpack_manifest(json.dumps(value).encode(), (Entry("d/x", "f", SHA, 4),))
    except RemoteError:
        return
    assert parse([list(e) for e in entries]) == entries
    leaves = {e.path for e in entries}
    assert not leaves & set(folders(entries)) and not any(p.startswith("/") or ".." in p.split("/") for p in leaves)


class Liar:
    """A pod that says to one operation what it likes."""

    def __init__(self, pod: FarPod, op: str, lie: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.pod, self.op, self.lie = pod, op, lie
        self.name, self.transport, self.close = "liar", pod.transport, pod.close
        self.received = 0

    @property
    def home(self) -> OrchHome:
        return self.pod.home

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, data: bytes = b"", *, timeout_s: float = 20.0
    ) -> Answer:
        self.received += len(data) if op in ("code.blobs", "code.piece") else 0
        found = self.pod.call(op, args, data, timeout_s=timeout_s)
        return Answer(self.lie(dict(found.fields)), found.data) if op == self.op else found


@pytest.mark.parametrize(
    "rows", [[99], [-1], [True], ["0"], [0.0], None, {"0": 1}, "all", [1 << 70], [1]], ids=lambda r: json.dumps(r)[:20]
)
def test_a_pod_gets_files_of_the_snapshot_and_no_others(
    rows: Any, repo: Path, home: OrchHome, pod: FarPod, tmp_path: Path
) -> None:
    write(tmp_path, {"private": "not yours"})
    write(repo, {"a.py": "1"})
    os.symlink("a.py", repo / "link")  # row 1
    liar = Liar(pod, "code.offer", lambda fields: {**fields, "missing": rows})
    with pytest.raises(RemoteError) as e:
        push_snapshot(liar, scan(repo, home))
    assert e.value.code == "E-CODE-032" and liar.received == 0


@pytest.mark.parametrize("have", [{"0": 1 << 40}, {"0": -1}, {"0": "x"}, {"99": 1}, {"-1": 1}, [], None, {"0" * 99: 1}])
def test_a_pod_that_lies_about_what_it_has_gets_the_whole(have: Any, repo: Path, home: OrchHome, pod: FarPod) -> None:
    write(repo, {"a.bin": os.urandom(5 << 20)})
    snapshot = scan(repo, home)
    liar = Liar(pod, "code.offer", lambda fields: {**fields, "have": have})
    assert push_snapshot(liar, snapshot).bytes_sent == 5 << 20
    assert pod.call("code.look", {"id": snapshot.id}).fields["there"] is True


def test_a_pod_that_never_has_enough_is_given_up(repo: Path, home: OrchHome, pod: FarPod) -> None:
    write(repo, {"a.py": "1"})
    liar = Liar(pod, "code.commit", lambda fields: {"missing": [0]})
    with pytest.raises(RemoteError, match="does not keep") as e:
        push_snapshot(liar, scan(repo, home))
    assert e.value.code == "E-CODE-031" and liar.received == 3
    assert e.value.fix == "orch pods check liar"
