"""A pod that is asked through a process of its own: found, greeted, believed in nothing, and gone when we are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.bundle import remote_bundle
from pods.copy import pull_file, push_file
from pods.pod import FarPod, LocalPod, NeedsPython
from pods.remote import __main__ as remote_main
from pods.remote.files import CHUNK_BYTES
from pods.remote.wire import FrameError, error_of, error_row, pack, unpack
from pods.transport.base import Process
from pods.transport.local import LocalTransport
from workloads.contract.errors import ConflictError, IntegrityError, LocalError, RemoteError, UnreachableError
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome


class NoisyTransport(LocalTransport):
    """A login whose files print, as many people's do."""

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        noise = "printf 'Welcome\\nORCH-REM not yet\\n'; printf 'no newline at the end'; exec \"$@\""
        return super().start(["/bin/sh", "-c", noise, "sh", *argv], timeout_s=timeout_s)


class BareTransport(LocalTransport):
    """A pod without any Python: none in the search path, nothing in the usual places."""

    def __init__(self, tools: Path) -> None:
        self.tools = tools
        tools.mkdir()
        for name in ("mkdir", "mv", "rm"):
            (tools / name).symlink_to(shutil.which(name) or "")

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        script = argv[2].replace("/usr/local/bin/python3", "/none").replace("/opt/conda/bin/python3", "/none")
        return super().start(["/usr/bin/env", f"PATH={self.tools}", *argv[:2], script, *argv[3:]], timeout_s=timeout_s)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[FarPod]:
    made = FarPod("box", NoisyTransport(), root=str(tmp_path / "a home with spaces" / ".orch"), python=sys.executable)
    yield made
    made.close()


def test_it_answers_what_the_function_answers_here(pod: FarPod, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    asked = {"path": str(tmp_path / "x"), "offset": 1, "limit": 10}
    here = LocalPod(OrchHome(tmp_path), LocalTransport()).call("files.read", asked)
    assert pod.call("files.read", asked) == here and here.data == b"bc"
    assert pod.home.path == tmp_path / "a home with spaces" / ".orch"


def test_it_is_sent_once_and_known_by_its_hash(pod: FarPod) -> None:
    began = time.monotonic()
    assert (pod.home.path / "remote" / remote_bundle().digest).is_dir()
    pod.close()
    again = FarPod("box", NoisyTransport(), root=str(pod.home.path), python=sys.executable)
    first = time.monotonic() - began
    zipped = again.home.path / "remote" / f"{remote_bundle().digest}.zip"
    zipped.unlink()  # it is not needed, nor sent, any more
    again.close()
    third = FarPod("box", NoisyTransport(), root=str(pod.home.path), python=sys.executable)
    assert third.home == again.home and not zipped.exists() and first < 20
    third.close()


def test_what_a_crash_left_of_it_is_made_again(pod: FarPod) -> None:
    home = pod.home
    pod.close()
    for path in (home.path / "remote" / remote_bundle().digest).rglob("*.py"):
        path.write_bytes(b"")  # as after a power cut before the bytes reached the disk
    (home.path / "remote" / f"{remote_bundle().digest}.zip").write_bytes(b"PK")
    assert pod.call("files.digest", {"path": "/etc/hostname"}).fields["size"] > 0


def test_every_module_of_the_bundle_imports_without_site_packages(tmp_path: Path) -> None:
    zipped = tmp_path / "x.zip"
    zipped.write_bytes(remote_bundle().data)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pods.remote.dispatch import MODULES; import importlib; "
    code += "[importlib.import_module(m).OPERATIONS for m in MODULES.values()]"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(zipped)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_error_there_is_raised_here(pod: FarPod, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as missing:
        pod.call("files.read", {"path": str(tmp_path / "none"), "offset": 0, "limit": 1})
    assert missing.value.where == str(tmp_path / "none") and "No such file" in missing.value.what
    with pytest.raises(ConflictError) as taken:
        pod.call("files.offer", {"path": str(tmp_path), "size": 1, "sha256": "0" * 64})
    assert taken.value.code == "E-FILE-002"
    for op in ("files.nothing", "nothing.read", "os.system", "files.__class__", ""):
        with pytest.raises(RemoteError, match="no operation"):
            pod.call(op)
    with pytest.raises(RemoteError, match="needs offset"):
        pod.call("files.read", {"path": "/etc/hostname", "offset": "1", "limit": 1})


def test_a_local_error_of_the_pod_is_not_this_machines() -> None:
    error = error_of(error_row(LocalError("E-X-001", "its disk is full", where="/x", fix="tidy")), "box")
    assert type(error) is RemoteError and (error.where, error.fix, error.exit_code) == ("/x", "tidy", 7)
    kept = error_of(error_row(IntegrityError("E-X-002", "bits", value=3)), "box")
    assert type(kept) is IntegrityError and kept.value == 3


def test_a_pod_without_python_says_what_to_do(tmp_path: Path) -> None:
    pod = FarPod("bare", BareTransport(tmp_path / "tools"), root=str(tmp_path / "o"))
    with pytest.raises(NeedsPython) as e:
        pod.connect()
    assert e.value.fix == "orch pods bootstrap bare   (brings one)" and e.value.where == str(tmp_path / "o")
    brought = tmp_path / "o" / "python" / "cpython-3.11" / "bin"
    brought.mkdir(parents=True)
    (brought / "python3").symlink_to(sys.executable)
    pod.connect()
    assert pod.hello["version"] == ".".join(map(str, sys.version_info[:3]))
    pod.close()


def test_what_was_lost_is_started_again_and_leaves_nothing(pod: FarPod) -> None:
    pid = pod.hello.get("pid") or (pod.connect() or pod.hello["pid"])
    first = ProcId.of(int(pid))
    assert first is not None
    os.kill(int(pid), 9)
    with pytest.raises(UnreachableError):
        pod.call("files.digest", {"path": "/etc/hostname"})
    assert pod.call("files.digest", {"path": "/etc/hostname"}).fields["size"] > 0
    second = ProcId.of(int(pod.hello["pid"]))
    pod.close()
    deadline = time.monotonic() + 60
    while second is not None and second.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not first.alive() and second is not None and not second.alive()


def test_a_silent_operator_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote_main.IDLE_S <= 600
    monkeypatch.setattr(remote_main, "IDLE_S", 0.2)
    r, w = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(r, 0)
        began = time.monotonic()
        with pytest.raises(remote_main._Gone):
            remote_main.read_exactly(8)
        assert 0.1 < time.monotonic() - began < 30
    finally:
        os.dup2(saved, 0)
        for fd in (saved, r, w):
            os.close(fd)


@given(st.dictionaries(st.text(max_size=20), st.integers() | st.text(max_size=20)), st.binary(max_size=5000))
def test_frames_come_back(message: dict[str, object], data: bytes) -> None:
    message = {k: v for k, v in message.items() if k != "z"}
    raw = memoryview(pack(message, data))
    at = 0

    def read_exactly(count: int) -> bytes:
        nonlocal at
        at += count
        return bytes(raw[at - count : at])

    assert unpack(read_exactly) == (message, data) and at == len(raw)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_frame_or_a_frame_error(raw: bytes) -> None:
    at = 0

    def read_exactly(count: int) -> bytes:
        nonlocal at
        if at + count > len(raw):
            raise EOFError
        at += count
        return raw[at - count : at]

    try:
        message, data = unpack(read_exactly)
    except (EOFError, FrameError):
        return
    assert isinstance(message, dict) and isinstance(data, bytes)


def test_a_frame_that_lies_about_its_size_is_refused_before_it_is_read() -> None:
    def reader(raw: bytes):  # type: ignore[no-untyped-def]
        view = memoryview(raw)
        at = 0

        def read_exactly(count: int) -> bytes:
            nonlocal at
            assert count < 1 << 20
            at += count
            return bytes(view[at - count : at])

        return read_exactly

    with pytest.raises(FrameError, match="too large"):
        unpack(reader(b"\xff" * 16))
    import struct
    import zlib

    bomb = zlib.compress(b"\0" * 30_000_000, 9)
    for size in (10, -1, 1 << 40, "x", True):
        text = (
            '{"z":' + ("true" if size is True else f'"{size}"' if isinstance(size, str) else str(size)) + "}"
        ).encode()
        with pytest.raises(FrameError):
            unpack(reader(struct.pack(">II", len(text), len(bomb)) + text + bomb))


# files


def test_an_upload_goes_on_where_it_was_cut(pod: FarPod, tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(3 * CHUNK_BYTES + 17))
    target = tmp_path / "there" / "big.bin"
    sent: list[int] = []

    class Cut(Exception):
        pass

    def cut_after_first(count: int) -> None:
        sent.append(count)
        if sum(sent) > 0:
            raise Cut

    with pytest.raises(Cut):
        push_file(pod, source, str(target), on_bytes=cut_after_first)
    assert not target.exists()
    part = next(target.parent.glob(".*.part"))
    have = part.stat().st_size
    again: list[int] = []
    assert push_file(pod, source, str(target), mode=0o755, on_bytes=again.append) == str(target)
    assert again[0] == have > 0 and target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o755 and list(target.parent.glob(".*")) == []
    third: list[int] = []
    push_file(pod, source, str(target), on_bytes=third.append)
    assert third == [source.stat().st_size]  # it was there


def test_many_send_the_same_file_at_once(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.write_bytes(os.urandom(9 << 20))
    pods = [FarPod("box", LocalTransport(), root=str(tmp_path / "o"), python=sys.executable) for _ in range(4)]
    pods[0].connect()
    with ThreadPoolExecutor(4) as pool:
        for name in ("a", "b", "c"):
            done = list(pool.map(lambda pod: push_file(pod, source, str(tmp_path / name)), pods))  # noqa: B023
            assert set(done) == {str(tmp_path / name)} and (tmp_path / name).read_bytes() == source.read_bytes()
    assert list(tmp_path.glob(".*.part")) == []
    for pod in pods:
        pod.close()


def test_bytes_that_changed_on_the_way_are_not_kept(pod: FarPod, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"x" * 1000)
    told = {"path": str(target), "size": 1000, "sha256": "0" * 64}
    pod.call("files.offer", told)
    pod.call("files.append", {"path": str(target), "sha256": "0" * 64, "offset": 0}, b"x" * 1000)
    with pytest.raises(IntegrityError):
        pod.call("files.commit", {**told, "mode": 0o600})
    assert not target.exists() and list(tmp_path.glob(".b*")) == []


def test_an_empty_file_and_one_that_is_read_back(pod: FarPod, tmp_path: Path) -> None:
    for size in (0, 1, 5 << 20):
        source = tmp_path / f"s{size}"
        source.write_bytes(os.urandom(size))
        there = push_file(pod, source, str(tmp_path / f"t{size}"))
        back = tmp_path / "back" / str(size)
        pull_file(pod, there, back, size=size)
        assert back.read_bytes() == source.read_bytes()


def test_a_pod_that_says_another_size_or_hash_is_not_believed(pod: FarPod, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"abc")
    for size, sha in ((2, None), (4, None), (3, "0" * 64)):
        with pytest.raises(IntegrityError):
            pull_file(pod, str(tmp_path / "s"), tmp_path / "back", size=size, sha256=sha)
        assert not (tmp_path / "back").exists()


def test_a_full_disk_is_said_before_a_byte_travels(pod: FarPod, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as e:
        pod.call("files.offer", {"path": str(tmp_path / "x"), "size": 1 << 50, "sha256": "0" * 64})
    assert e.value.code == "E-FILE-003" and list(tmp_path.glob(".x*")) == []


def test_a_listing_tells_what_is_what(pod: FarPod, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    (top / "d" / "f").write_bytes(b"12")
    (top / "l").symlink_to("/etc/passwd")
    os.mkfifo(top / "p")
    Path(os.fsdecode(bytes(top) + b"/bad\xff")).write_bytes(b"")
    rows = {name: (kind, size) for name, kind, size, _ in pod.call("files.list", {"path": str(top)}).fields["entries"]}
    assert rows["d/f"] == ("file", 2) and rows["d"][0] == "dir" and rows["l"][0] == "link" and rows["p"][0] == "other"
    assert any(name.startswith("base64:") for name in rows)
