"""The store on the pod: what was damaged is seen, what is unused goes, a full disk harms nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.pod import FarPod, LocalPod
from pods.remote import code
from pods.remote.code import materialize
from pods.remote.objects import Store
from pods.snapshot import Snapshot, push_snapshot, scan
from pods.transport.local import LocalTransport
from tests.snapshot.conftest import tree_of, write
from workloads.contract.errors import IntegrityError, RemoteError
from workloads.contract.rundir import OrchHome


@pytest.fixture
def here(tmp_path: Path) -> LocalPod:
    return LocalPod(OrchHome(tmp_path / "here"), LocalTransport())


def objects(home: OrchHome) -> list[Path]:
    return sorted(p for p in (home.code_store / "objects").rglob("*") if p.is_file())


def pushed(pod: LocalPod, repo: Path, home: OrchHome) -> Snapshot:
    snapshot = scan(repo, home)
    push_snapshot(pod, snapshot)
    return snapshot


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "directory"])
def test_a_damaged_object_is_never_used_and_sent_again(
    size: int, harm: str, here: LocalPod, repo: Path, home: OrchHome, tmp_path: Path
) -> None:
    write(repo, {"a.bin": os.urandom(size), "b.py": "1"})
    snapshot = pushed(here, repo, home)
    path = Store(here.home).object(next(e.value for e in snapshot.entries if e.path == "a.bin"))
    data = path.read_bytes()
    path.chmod(0o600)
    if harm == "flip":
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif harm == "cut":
        path.write_bytes(data[:10])
    else:
        path.unlink()
    if harm == "directory":
        path.mkdir()
        with pytest.raises((IntegrityError, OSError)):
            materialize(here.home, snapshot.id, tmp_path / "copy")
        return
    with pytest.raises(IntegrityError) as e:
        materialize(here.home, snapshot.id, tmp_path / "copy")
    assert (e.value.code, e.value.where) == ("E-CODE-003", "a.bin")
    assert push_snapshot(here, snapshot).files_sent == 1
    materialize(here.home, snapshot.id, tmp_path / "again")
    assert (tmp_path / "again" / "a.bin").read_bytes() == data


def test_large_snapshots_are_linked_and_a_write_through_a_link_is_seen(
    here: LocalPod, repo: Path, home: OrchHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "COPY_WHOLE_BYTES", 100_000)
    write(repo, {"a.bin": os.urandom(200_000), "tool": os.urandom(90_000), "small.py": "1"})
    (repo / "tool").chmod(0o755)
    snapshot = pushed(here, repo, home)
    first = tmp_path / "first"
    materialize(here.home, snapshot.id, first)
    modes = {p.name: (p.stat().st_nlink, p.stat().st_mode & 0o777) for p in first.iterdir()}
    assert modes == {"a.bin": (2, 0o400), "tool": (1, 0o700), "small.py": (1, 0o600)}
    (first / "a.bin").chmod(0o644)
    with (first / "a.bin").open("r+b") as f:  # as root's program may
        f.write(b"harm")
    with pytest.raises(IntegrityError, match="damaged"):
        materialize(here.home, snapshot.id, tmp_path / "second")
    assert push_snapshot(here, snapshot).files_sent == 1
    materialize(here.home, snapshot.id, tmp_path / "third")
    assert tree_of(tmp_path / "third")[b"a.bin"] == ("f", (repo / "a.bin").read_bytes())
    (tmp_path / "third" / "a.bin").touch()  # not a byte is other: it is hashed, and kept
    assert push_snapshot(here, snapshot).files_sent == 0


def test_where_links_are_not_to_be_had_files_are_copied(
    here: LocalPod, repo: Path, home: OrchHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(code, "COPY_WHOLE_BYTES", 0)
    write(repo, {"a.bin": os.urandom(200_000)})
    snapshot = pushed(here, repo, home)
    monkeypatch.setattr(os, "link", refuse)
    materialize(here.home, snapshot.id, tmp_path / "copy")
    assert tree_of(tmp_path / "copy") == {b"a.bin": ("f", (repo / "a.bin").read_bytes())}


def test_gc_removes_what_no_launch_uses(
    here: LocalPod, repo: Path, home: OrchHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repo, {"a.py": "one", "both.py": "both"})
    old = pushed(here, repo, home)
    write(repo, {"a.py": "two"})
    new = pushed(here, repo, home)
    ask = {"older_than_s": 86400 * 30, "dry_run": False}
    assert here.call("code.gc", ask).fields == {"snapshots": 0, "objects": 0, "bytes": 0}
    manifest = here.home.code_store / f"{old.id}.json"
    os.utime(manifest, (1e9, 1e9))
    assert here.call("code.gc", ask).fields == {"snapshots": 1, "objects": 0, "bytes": 0}  # its files are young
    monkeypatch.setattr(code, "YOUNG_S", -5.0)
    assert here.call("code.gc", {**ask, "dry_run": True}).fields == {"snapshots": 0, "objects": 1, "bytes": 3}
    assert here.call("code.gc", ask).fields == {"snapshots": 0, "objects": 1, "bytes": 3}
    assert here.call("code.look", {"id": new.id}).fields["there"] is True
    assert here.call("code.look", {"id": old.id}).fields["there"] is False
    assert push_snapshot(here, new).files_sent == 0 and len(objects(here.home)) == 2


def test_gc_waits_for_who_uses_the_store(here: LocalPod, repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "one"})
    pushed(here, repo, home)
    lock = here.home.code_store / ".lock"
    hold = f"import fcntl, time; f = open({str(lock)!r}); fcntl.flock(f, fcntl.LOCK_SH); print('x', flush=True)\n"
    hold += "time.sleep(0.6)\nprint('y', flush=True)"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    here.call("code.gc", {"older_than_s": 0, "dry_run": False})
    os.set_blocking(holder.stdout.fileno(), False)
    assert holder.stdout.readline() == b"y\n", "said before it lets go"
    holder.wait(timeout=120)
    holder.stdout.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs root on Linux: mounts a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.lab
def test_a_full_disk_harms_nothing(small_disk: Path, repo: Path, home: OrchHome, tmp_path: Path) -> None:
    write(repo, {f"{i}.bin": os.urandom(1 << 20) for i in range(3)} | {"big.bin": os.urandom(6 << 20)})
    pod = FarPod("small", LocalTransport(), root=str(small_disk / "far"))
    try:
        pod.connect()
        filler = small_disk / "filler"
        filler.write_bytes(bytes(20 << 20))
        snapshot = scan(repo, home)
        with pytest.raises(RemoteError) as e:
            push_snapshot(pod, snapshot)
        assert e.value.code == "E-CODE-006" and not list((small_disk / "far").rglob("objects/??"))  # nothing was sent
        with filler.open("ab") as f:
            free = os.statvfs(small_disk)
            f.write(bytes(free.f_bavail * free.f_frsize - (600 << 10)))
        by_path = {e.path: e for e in snapshot.entries}
        one, big = by_path["1.bin"], by_path["big.bin"]
        for op, args, data in (
            ("code.blobs", {"blobs": [[one.value, one.size]]}, (repo / "1.bin").read_bytes()),
            (
                "code.piece",
                {"sha256": big.value, "size": big.size, "offset": 0},
                (repo / "big.bin").read_bytes()[: 4 << 20],
            ),
        ):
            with pytest.raises(RemoteError) as e:
                pod.call(op, args, data)
            assert e.value.code == "E-CODE-006" and e.value.fix is not None
        filler.unlink()
        assert objects(pod.home) == list((small_disk / "far").rglob(f".{big.value}.part"))  # what came of it is kept
        assert push_snapshot(pod, snapshot).files_sent == 4
        materialize(pod.home, snapshot.id, tmp_path / "copy")
        assert tree_of(tmp_path / "copy") == {os.fsencode(n): ("f", (repo / n).read_bytes()) for n in by_path}
    finally:
        pod.close()
