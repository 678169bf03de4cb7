"""Small files: born whole, bounded, never through a symlink; lines never merge."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workloads.contract import files


def test_atomic_write_replaces_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "s.json"
    files.atomic_write_json(target, {"a": 1})
    files.atomic_write_json(target, {"a": 2})
    assert files.read_json(target) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_readers_see_old_or_new_never_a_mixture(tmp_path: Path) -> None:
    target = tmp_path / "s.json"
    files.atomic_write_json(target, {"n": 0, "pad": "x" * 5000})
    stop = threading.Event()

    def rewrite() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            files.atomic_write_json(target, {"n": n, "pad": "x" * (5000 + n % 7)}, durable=False)

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen, deadline = [0], time.monotonic() + 60
    try:
        while (len(seen) < 500 or seen[-1] < 50) and time.monotonic() < deadline:
            seen.append(files.read_json(target)["n"])
    finally:
        stop.set()
        writer.join(60)
    assert seen == sorted(seen) and seen[-1] >= 50


FULL = """
import resource, sys
from pathlib import Path
from workloads.contract import files
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    files.atomic_write(Path(sys.argv[1]), b"x" * 1000)
except OSError as e:
    print(e.errno)
"""


def test_no_room_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "s.json"
    files.atomic_write(target, b"old")
    root = Path(files.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(target)], env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(errno.EFBIG)
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_nan_is_refused_in_state_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|Out of range"):
        files.atomic_write_json(tmp_path / "s.json", {"loss": float("nan")})


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "huge", "list", "deep", "torn"])
def test_foreign_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.json"
    if kind == "symlink":
        (tmp_path / "real").write_text("{}")
        path.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        text = {"huge": '{"a":"' + "x" * (5 << 20) + '"}', "list": "[1]", "deep": "[" * 100_000, "torn": '{"a":'}[kind]
        path.write_text(text)
    with pytest.raises((OSError, ValueError)):
        files.read_json(path)
    assert files.try_read_json(path) is None


def test_a_torn_line_is_not_merged_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(b'{"a":1}\n{"half')
    writer = files.LineWriter(path)
    writer.write(b'{"a":2}\n')
    writer.write(b'{"a":3}\n')
    writer.close()
    lines = path.read_bytes().split(b"\n")
    assert lines == [b'{"a":1}', b'{"half', b'{"a":2}', b'{"a":3}', b""]


SHORT = """
import errno, resource, signal, sys
from pathlib import Path
from workloads.contract import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, room = Path(sys.argv[1]), int(sys.argv[2])
writer = files.LineWriter(path)
write = {"kept": lambda n: writer.write(b'{"n":%d}\\n' % n), "opened": lambda n: files.append_line(path, {"n": n})}
write[sys.argv[3]](1)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
try:
    write[sys.argv[3]](2)
except OSError as e:
    print(errno.errorcode[e.errno])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write[sys.argv[3]](3)
"""


@pytest.mark.parametrize("file", ["kept", "opened"])
@pytest.mark.parametrize(
    ("room", "rows", "said"), [(5, [1, "torn", 3], "ENOSPC"), (7, [1, 2, 3], "")], ids=["torn", "all but its newline"]
)
def test_a_line_that_the_disk_took_in_part_is_refused(
    tmp_path: Path, room: int, rows: list[object], said: str, file: str
) -> None:
    """Who wrote it learns that it is not there, and the next line starts anew."""
    path = tmp_path / "l.jsonl"
    root = Path(files.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(path), str(room), file], env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[object] = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(json.loads(line)["n"])
        except ValueError:
            found.append("torn")
    assert found == rows and done.stdout.strip() == said


def test_read_tail(tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert files.read_tail(path) == b""
    path.write_bytes(b"abc" * 100)
    assert files.read_tail(path, 4) == b"cabc"
