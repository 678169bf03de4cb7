"""A pod that lies: the operator says so in one block, writes nothing outside the copy, and stays small."""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs import fleet
from orchestrator.runs.events import read_events
from orchestrator.runs.index import list_runs
from orchestrator.runs.logs import last_lines
from orchestrator.runs.pull import pull
from orchestrator.runs.report import screen
from orchestrator.runs.source import FarSource, fetch
from pods.remote.wire import pack
from tests.mirror.liar import Lie, liar, raw_json, says, summed, sync_of
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import IntegrityError, OrchError, RemoteError
from workloads.contract.rundir import OrchHome, RunDir

RUN = "tiny-20261118T110640Z-abcd"
INODE, MTIME = 7, 1_795_000_000_000_000_000


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return OrchHome(path)


def source(home: OrchHome, lie: Lie) -> FarSource:
    pod = liar(lie)
    return FarSource(home, home.mirrored(RUN), "liar", lambda: pod)


def outside(home: OrchHome) -> list[str]:
    """Files below the test's folder that are not in the copy of the run."""
    copy = home.mirrored(RUN).path
    return [str(p) for p in home.path.parent.rglob("*") if p.is_file() and not p.is_relative_to(copy)]


def grow(name: str, data: bytes, how: str = "new", offset: int = 0) -> list[Any]:
    return [name, how, offset, len(data), INODE, MTIME]


ODD_NAMES = [
    "../../x", "/tmp/x", "logs/../../x", "logs/rank0.log/../../../x", ".secrets.json", "code/train.py", "-rf",
    "logs/\x1b]52;c;x\x07.log", "logs/rank0.log\0", ".mirror.json", ".mirror.lock", "", "tb/../../../x",
    "checkpoints/step_00000001/model.pt", "logs/rank٣.log",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_no_run_has(home, name):
    for how in ("new", "whole"):
        with pytest.raises(RemoteError) as caught:
            source(home, sync_of(RUN, [[name, how, 0, 4, INODE, MTIME]], data=b"evil")).refresh()
        assert caught.value.code == "E-MIRROR-002" and "\x1b" not in caught.value.render()
    assert outside(home) == [] and not home.mirrored(RUN).path.exists()


ODD_ROWS = {
    "negative offset": ["events.jsonl", "new", -1, 4, INODE, MTIME],
    "negative length": ["events.jsonl", "new", 0, -4, INODE, MTIME],
    "longer than what came": ["events.jsonl", "new", 0, 5, INODE, MTIME],
    "huge": ["events.jsonl", "new", 0, 1 << 62, INODE, MTIME],
    "beyond all files": ["events.jsonl", "new", 1 << 50, 4, INODE, MTIME],
    "a number without end": ["events.jsonl", "new", 0, 10**400, INODE, MTIME],
    "a float": ["events.jsonl", "new", 0.0, 4, INODE, MTIME],
    "true": ["events.jsonl", "new", 0, True, INODE, MTIME],
    "growing what is not there": ["events.jsonl", "grow", 0, 4, INODE, MTIME],
    "jumping what is not there": ["events.jsonl", "jump", 9, 4, INODE, MTIME],
    "before what is not there": ["events.jsonl", "front", 0, 4, INODE, MTIME],
    "whole at an offset": ["status.json", "whole", 3, 4, INODE, MTIME],
    "a log whole": ["logs/rank0.log", "whole", 0, 4, INODE, MTIME],
    "a status that grows": ["status.json", "new", 0, 4, INODE, MTIME],
    "another file's bytes": ["events.jsonl", "new", 0, 4, INODE, MTIME, 1],
    "no such way": ["events.jsonl", "link", 0, 4, INODE, MTIME],
    "too short": ["events.jsonl", "new", 0],
    "no list": {"name": "events.jsonl"},
    "no text": [1, 2, 3, 4, 5, 6],
    "mtime beyond": ["events.jsonl", "new", 0, 4, INODE, 1 << 63],
}


@pytest.mark.parametrize("what", ODD_ROWS)
def test_a_row_that_is_none(home, what):
    with pytest.raises(RemoteError) as caught:
        source(home, sync_of(RUN, [ODD_ROWS[what]], data=b"evil")).refresh()
    assert caught.value.code == "E-MIRROR-002" and not home.mirrored(RUN).path.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"runs": []}, {"runs": {}, "now": "soon", "listed": []}, {"runs": {}, "now": -1, "listed": []},
        {"runs": {}, "now": float("nan"), "listed": []}, {"runs": {"../x": {}}, "now": 1.0, "listed": []},
        {"runs": {RUN: 3}, "now": 1.0, "listed": []}, {"runs": {}, "now": 1.0, "listed": [{"run": "../../x"}]},
        {"runs": {}, "now": 1.0, "listed": {}}, {"runs": {}, "now": 1.0, "listed": [7]},
        {"runs": {RUN: {"files": "all"}}, "now": 1.0, "listed": []},
        {"runs": {RUN: {"files": [], "gone": 3, "observed": 3}}, "now": 1.0, "listed": [], "more": True},
    ],
)  # fmt: skip
def test_an_answer_that_is_none(home, fields):
    with pytest.raises(RemoteError):
        source(home, says(fields)).refresh()
    assert outside(home) == []


@pytest.mark.parametrize(
    "lie",
    [
        lambda m, d: b"\xff" * 64,
        lambda m, d: struct.pack(">II", 1 << 31, 0),
        lambda m, d: struct.pack(">II", 2, 1 << 31) + b"{}",
        raw_json("[" * 100_000),
        raw_json("[]"),
        raw_json('{"ok": true, "fields": 3}'),
        raw_json('{"ok": false, "error": {"kind": "X", "code": "\\u001b[2J", "what": "\\u001b]0;x\\u0007"}}'),
        raw_json('{"ok": true, "fields": {}, "z": 99999999999}'),
        lambda m, d: b"",
    ],
)
def test_a_frame_that_is_none(home, lie):
    with pytest.raises(OrchError) as caught:
        source(home, lie).refresh()
    assert "\x1b" not in caught.value.render() and outside(home) == []


def test_it_says_there_is_more_for_ever(home):
    with pytest.raises(RemoteError, match="more"):
        fetch(source(home, sync_of(RUN, [], more=True)))


def test_links_that_lie_in_the_copy_are_not_followed(home, tmp_path):
    copy = home.mirrored(RUN).path
    copy.mkdir(parents=True)
    (tmp_path / "else").mkdir()
    (copy / "logs").symlink_to(tmp_path / "else")
    with pytest.raises(OrchError, match="something else lies"):
        source(home, sync_of(RUN, [grow("logs/rank0.log", b"evil")], data=b"evil")).refresh()
    (copy / "events.jsonl").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    source(home, sync_of(RUN, [grow("events.jsonl", b"evil")], data=b"evil")).refresh()
    assert (tmp_path / "victim").read_text() == "mine" and not list((tmp_path / "else").iterdir())


def test_gone_removes_nothing_that_was_not_copied(home, tmp_path):
    (tmp_path / "victim").write_text("mine")
    gone = ["../../../victim", str(tmp_path / "victim"), ".mirror.lock", "status.json", 3, None]
    source(home, sync_of(RUN, [], gone=gone)).refresh()
    assert (tmp_path / "victim").read_text() == "mine" and (home.mirrored(RUN).path / ".mirror.lock").exists()


def test_a_screen_shows_no_escape_and_no_lie_of_another_type(home):
    evil = "\x1b[2J\x9b31m\u202e"
    status = {"run": RUN, "name": evil, "state": "running", "reason": evil, "attempt": 1, "since": 1.0, "ts": 1.0,
              "pods": [evil], "step": 10**400, "loss": "x"}  # fmt: skip
    info = {"world_size": 2, "pods": [{"name": evil, "ranks": [0, "x"]}], "job": 3, "name": evil}
    event = {"v": 1, "seq": 1, "ts": 1e300, "attempt": 1, "who": evil, "what": evil, "why": evil}
    files, data = [], b""
    for name, row in (("status.json", status), ("run.json", info)):
        raw = json.dumps(row).encode()
        files.append([name, "whole", 0, len(raw), INODE, MTIME])
        data += raw
    raw = json.dumps(event).encode() + b"\n" + b"\x1b" * 5000 + b"\n"
    beat = b'{"v":1,"seq":0,"ts":1,"msg":"progress","rank":0,"world_size":2,"attempt":1,"run":"../../x","loss":1e999}\n'
    files += [grow("events.jsonl", raw), grow("heartbeat_rank0.jsonl", beat)]
    observed = {"supervised": "yes", "alive": {"0": "yes", "x": True, "1": False}, "frozen": ["x", 3], "asleep": evil}
    far = source(home, sync_of(RUN, files, data=data + raw + beat, observed=observed))
    far.refresh()
    view = far.view()
    text = screen(view, read_events(view.run)) + json.dumps(view.as_json())
    assert not set(text) & set("\x1b\x9b\u202e") and "unsupervised" in view.words
    (view.run.path / ".mirror.json").write_text("x")
    assert outside(home) == []


def test_offsets_far_out_cost_neither_disk_nor_time(home):
    far = source(home, sync_of(RUN, [grow("logs/rank0.log", b"end\n", offset=(1 << 40) - 4)], data=b"end\n"))
    far.refresh("logs")
    log = home.mirrored(RUN).rank_log(0)
    began = time.process_time()
    assert log.stat().st_size == 1 << 40 and log.stat().st_blocks * 512 < 1 << 20
    assert far.floor(log) == (1 << 40) - 4 and last_lines(log, 1, far.floor(log)) == ["end"]
    assert time.process_time() - began < 2


@pytest.mark.long
def test_ten_megabytes_in_one_line_and_endless_noise_stay_small(home):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = os.urandom(5 << 20).hex().encode()
    state = {"end": 0}

    def lie(message: dict[str, Any], data: bytes) -> bytes:
        how, at = ("new", 0) if not state["end"] else ("grow", state["end"])
        state["end"] += len(line)
        fields = {"now": 5.0, "keeper": True, "more": True, "listed": []}
        told = {"files": summed([grow("logs/rank0.log", line, how, at)], line), "gone": [], "observed": {}}
        return pack({"ok": True, "fields": {**fields, "runs": {RUN: told}}}, line)

    far = source(home, lie)
    for _ in range(10):
        assert far.refresh("logs") is True
    assert home.mirrored(RUN).rank_log(0).stat().st_size == 10 * len(line)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def test_one_liar_spoils_nothing_for_the_others(home):
    pods = {"bad": PodSpec(ssh="bad"), "odd": PodSpec(ssh="odd"), "good": PodSpec(ssh="good")}
    listed = [{"run": RUN, "state": "\x1b[2J", "created": "x", "kind": "\x1b[2J" * 99, "head": 7}]
    good = says({"now": 5.0, "keeper": True, "more": False, "runs": {}, "listed": listed})
    lies: dict[str, Lie] = {"bad": lambda m, d: b"\xff" * 64, "odd": sync_of("../x", []), "good": good}

    def open_pod(name: str, spec: PodSpec):
        pod = liar(lies[name])
        pod.name = name
        return pod

    looks = fleet.survey(home, pods, open_pod)
    assert [look.error is None for look in looks] == [False, False, True]
    assert len(fleet.troubles(looks)) == 2
    (row,) = list_runs(home)
    assert (row.run, row.pod) == (RUN, "good") and len(row.kind) <= 40


MANIFESTS = [
    {"files": [{"name": "../../x", "size": 4, "sha256": "0" * 64}]},
    {"files": [{"name": "/tmp/x", "size": 4, "sha256": "0" * 64}]},
    {"files": [{"name": "a", "size": -4, "sha256": "0" * 64}]},
    {"files": [{"name": "a", "size": 1 << 60, "sha256": "0" * 64}]},
    {"files": [{"name": "a", "size": 4, "sha256": "../x"}]},
    {"files": [{"name": "a", "size": 4, "sha256": "0" * 64}] * 2},
    {"files": [{"name": "manifest.json", "size": 4, "sha256": "0" * 64}]},
    {"files": [{"name": "\x1b[2J", "size": 4, "sha256": "0" * 64}]},
    {"files": []}, {"files": 3}, {}, [],
]  # fmt: skip


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_that_cannot_be_used(home, manifest):
    raw = json.dumps(manifest).encode()
    rows = [["checkpoints/step_00000001/manifest.json", "whole", 0, len(raw), INODE, MTIME]]
    with pytest.raises(IntegrityError) as caught:
        pull(source(home, sync_of(RUN, rows, data=raw)), checkpoints="all", logs=True, progress=lambda *_: None)
    assert caught.value.exit_code == 8 and "\x1b" not in caught.value.render() and outside(home) == []


@pytest.mark.parametrize("sent", [b"evil", b"much longer than it should be", b""])
def test_checkpoint_bytes_that_are_not_the_manifests(home, sent):
    raw = json.dumps({"files": [{"name": "model.pt", "size": 4, "sha256": "0" * 64}]}).encode()
    rows = [["checkpoints/step_00000001/manifest.json", "whole", 0, len(raw), INODE, MTIME]]

    def lie(message: dict[str, Any], data: bytes) -> bytes:
        if message["op"] == "mirror.sync":
            return sync_of(RUN, rows, data=raw)(message, data)
        return pack({"ok": True, "fields": {"size": 4}}, sent)

    with pytest.raises(IntegrityError, match="what arrived"):
        pull(source(home, lie), checkpoints="latest", logs=True, progress=lambda *_: None)
    assert not (home.mirrored(RUN).checkpoint(1) / "model.pt").exists() and outside(home) == []


def test_a_copy_is_read_like_any_run_directory(home):
    source(home, sync_of(RUN, [grow("events.jsonl", b"")])).refresh()
    assert isinstance(home.mirrored(RUN), RunDir) and read_events(home.mirrored(RUN)) == []
