"""The copy of one run that lies on another machine: a run directory at home, filled by byte offset.

Which bytes of which file are there is kept in `.mirror.json` beside them, written after the bytes: a crash between the
two costs a second fetch and doubles nothing. Only `orchestrator.runs.source` fills it; every reader of run directories
reads it. What a pod sends is checked here first: names by the allow-list of `pods.remote.runfiles`, offsets and sizes
by what was asked. Nothing outside the directory is ever written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pods.remote.mirror import GUARD_BYTES
from pods.remote.runfiles import MAX_FILE_BYTES, MAX_WHOLE_BYTES, kind_of
from workloads.contract.errors import LocalError, RemoteError, escape
from workloads.contract.files import atomic_write, atomic_write_json, read_json, write_all
from workloads.contract.rundir import RunDir

INDEX_NAME = ".mirror.json"
LOCK_NAME = ".mirror.lock"
VERSION = 1
MAX_INDEX_BYTES = 64 << 20
MAX_FILES = 40_000
MAX_STRETCHES = 64
LOCK_S = 10.0
FREE_BYTES = 512 << 20
Stretches = list[list[int]]


@dataclass
class Index:
    """What is known of a copy. `files`: name to [inode, guard, stretches], or to [inode, size, mtime_ns]."""

    pod: str = ""
    root: str = ""  # orch's home there, for people
    seen: float = 0.0  # Unix seconds of this machine, when the pod was last asked
    pod_now: float = 0.0  # the pod's clock then
    keeper: bool = False
    missing: bool = False  # the pod said then that it has no such run
    observed: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, run: RunDir) -> Index | None:
        try:
            row = read_json(run.path / INDEX_NAME, MAX_INDEX_BYTES)
        except (OSError, ValueError):
            return None
        files, observed = row.get("files"), row.get("observed")
        if row.get("v") != VERSION or not isinstance(files, dict) or not isinstance(observed, dict):
            return None
        good = {k: v for k, v in files.items() if kind_of(k) is not None and _is_state(k, v)}
        return cls(
            str(row.get("pod", "")), str(row.get("root", "")), _time(row.get("seen")), _time(row.get("pod_now")),
            row.get("keeper") is True, row.get("missing") is True, observed, good,
        )  # fmt: skip

    def wire(self) -> dict[str, Any]:
        return {"v": VERSION, **self.__dict__}


def _time(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e11 else 0.0


def _is_state(name: str, state: object) -> bool:
    kind = kind_of(name)
    if kind is None or not isinstance(state, list) or len(state) != 3:
        return False
    if not kind.grows:
        return all(type(x) is int for x in state)
    stretches = state[2]
    return (
        type(state[0]) is int and isinstance(state[1], str) and isinstance(stretches, list) and len(stretches) > 0
        and all(isinstance(s, list) and len(s) == 2 and all(type(x) is int for x in s) for s in stretches)
    )  # fmt: skip


def floor_of(run: RunDir, path: Path) -> int:
    """From which byte on a file of `run` is here without a hole: 0 for a run of this machine."""
    index = Index.read(run)
    state = index.files.get(path.relative_to(run.path).as_posix()) if index else None
    return int(state[2][-1][0]) if state and isinstance(state[2], list) else 0


@dataclass(frozen=True)
class News:
    """One file of an answer, checked: its bytes belong at `offset` of `name`."""

    name: str
    how: str
    offset: int
    inode: int
    mtime_ns: int
    data: memoryview


class Mirror:
    """The copy of one run. Several processes may fill it at once; each file is taken from the quickest."""

    def __init__(self, run: RunDir, pod: str) -> None:
        self.run, self.pod = run, pod
        self._stamp: tuple[int, ...] = ()
        self._index = Index(pod=pod)
        self._asked: dict[str, list[Any]] = {}
        self.reload()

    @property
    def index(self) -> Index:
        return self._index

    def reload(self) -> None:
        """Read the index again when another process has written it."""
        stamp = self._stamp_now()
        if stamp != self._stamp or not stamp:
            self._stamp, self._index = stamp, Index.read(self.run) or Index(pod=self.pod)

    def expect_all(self) -> None:
        """For a run that the pod tells of unasked: whatever it sends takes the place of what is here."""
        self.reload()
        self._asked = dict(self._index.files)

    def _stamp_now(self) -> tuple[int, ...]:
        try:
            st = (self.run.path / INDEX_NAME).stat()
        except OSError:
            return ()
        return (st.st_ino, st.st_size, st.st_mtime_ns)

    def _write_index(self) -> None:
        atomic_write_json(self.run.path / INDEX_NAME, self._index.wire(), durable=False)
        self._stamp = self._stamp_now()

    def have(self) -> dict[str, list[Any]]:
        """What the pod is told of the bytes that are here. A file that was removed or cut here counts as absent."""
        self.reload()
        self._asked = {n: s for n, s in self._index.files.items() if self._is_whole(n, s)}
        told = {}
        for name, state in self._asked.items():
            if isinstance(state[2], list):
                stretches: Stretches = state[2]
                (start, end), before = stretches[-1], stretches[-2][1] if len(stretches) > 1 else 0
                told[name] = [state[0], state[1], end, start, before]
            else:
                told[name] = state
        return told

    def _is_whole(self, name: str, state: list[Any]) -> bool:
        try:
            size = (self.run.path / name).lstat().st_size
        except OSError:
            return False
        return bool(size >= state[2][-1][1] if isinstance(state[2], list) else size == state[1])

    def apply(self, news: list[News], gone: list[str], sight: Mapping[str, Any]) -> int:
        """Write what came, then the index; how many bytes. LocalError when this machine cannot take it.

        `sight`: the fields of `Index` that tell what the pod saw.
        """
        try:
            self.run.path.parent.mkdir(
                parents=True, exist_ok=True, mode=0o700
            )  # not those above it: they are a person's
            self.run.path.mkdir(exist_ok=True, mode=0o700)
            total = sum(len(n.data) for n in news)
            self._check_free(total)
            with self._locked():
                self.reload()
                for item in news:
                    if self._index.files.get(item.name) == self._asked.get(item.name):  # else another process was first
                        self._write(item)
                for name in gone:
                    self._remove(name)
                self._index = replace(self._index, pod=self.pod, seen=time.time(), missing=False, **sight)
                self._write_index()
        except OSError as e:
            raise LocalError(
                "E-MIRROR-003", f"the copy of run {self.run.run_id} cannot be written: {e.strerror}",
                where=str(self.run.path), fix="free some space; the run itself goes on",
            ) from e  # fmt: skip
        return total

    def note_missing(self, pod_now: float) -> None:
        """The pod has no such run any more: the copy stays, and says so."""
        if self.run.path.is_dir():
            with self._locked():
                self.reload()
                self._index = replace(self._index, missing=True, seen=time.time(), pod_now=pod_now)
                self._write_index()

    def _check_free(self, coming: int) -> None:
        if coming < 1 << 20:
            return
        disk = os.statvfs(self.run.path)
        free = disk.f_bavail * disk.f_frsize
        if free - coming < min(FREE_BYTES, disk.f_blocks * disk.f_frsize // 10):
            raise LocalError(
                "E-MIRROR-004", "too little free disk here for the copy of a run", where=str(self.run.path),
                value=f"{free >> 20} MiB free", fix="free some space; the run itself goes on",
            )  # fmt: skip

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.run.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + LOCK_S
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
            yield
        finally:
            os.close(fd)

    def _write(self, item: News) -> None:
        path = self.run.path / item.name
        self._make_folder(path.parent)
        if item.how == "whole":
            atomic_write(path, bytes(item.data), durable=False)
            os.utime(path, ns=(item.mtime_ns, item.mtime_ns))
            self._index.files[item.name] = [item.inode, len(item.data), item.mtime_ns]
            return
        old = self._index.files.get(item.name)
        stretches: Stretches = [] if item.how == "new" or old is None else [list(s) for s in old[2]]
        # a file that was replaced there becomes another file here, so that readers of the old one see it too
        target = path.with_name(f".{path.name}.new") if item.how == "new" else path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if item.how == "new" else 0)
        fd = os.open(target, flags, 0o600)
        try:
            os.lseek(fd, item.offset, os.SEEK_SET)
            write_all(fd, bytes(item.data))
            if not item.data and item.offset:
                os.ftruncate(fd, item.offset)
            _add(stretches, item.offset, item.offset + len(item.data))
            start, end = stretches[-1]
            at = max(start, end - GUARD_BYTES)
            guard = hashlib.sha256(os.pread(fd, end - at, at)).hexdigest()[:16]
            os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))
        finally:
            os.close(fd)
        if target != path:
            target.replace(path)
        self._index.files[item.name] = self._asked[item.name] = [item.inode, guard, stretches[-MAX_STRETCHES:]]

    def _make_folder(self, folder: Path) -> None:
        """Folders below the copy, none of them a link to elsewhere."""
        below = folder.relative_to(self.run.path)
        path = self.run.path
        for part in below.parts:
            path = path / part
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            if path.is_symlink() or not path.is_dir():
                raise LocalError(
                    "E-MIRROR-005", "something else lies where a folder of a copy should be", where=str(path),
                    fix="move it away",
                )  # fmt: skip

    def _remove(self, name: str) -> None:
        """What was removed there. A checkpoint whose data was pulled keeps its manifest."""
        path = self.run.path / name
        if self._index.files.pop(name, None) is None:
            return
        is_manifest = path.parent.parent == self.run.checkpoints
        with contextlib.suppress(OSError):
            if is_manifest and len(os.listdir(path.parent)) > 1:
                return
            path.unlink()
            if is_manifest:
                path.parent.rmdir()


def _add(stretches: Stretches, start: int, end: int) -> None:
    """Bytes [start, end) are there now; neighbours become one. The newest stretch is the last."""
    stretches.append([start, end])
    stretches.sort()
    merged: Stretches = []
    for low, high in stretches:
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    stretches[:] = merged


def parse_news(pod: str, told: Mapping[str, Any], data: memoryview, asked: Mapping[str, Any]) -> tuple[list[News], int]:
    """The files of one run in an answer, and how many bytes of `data` are theirs. RemoteError for anything odd.

    `asked`: what the pod was told of the files here (`Mirror.have`).
    """
    rows = told.get("files")
    if not isinstance(rows, list) or len(rows) > MAX_FILES:
        raise nonsense(pod, "a list of files that is none")
    found, at = [], 0
    ends: dict[str, tuple[int, int]] = {}
    for row in rows:
        if not (isinstance(row, list) and len(row) == 7 and isinstance(row[0], str) and isinstance(row[1], str)):
            raise nonsense(pod, "a file that is none")
        name, how, *numbers = row
        if not all(type(x) is int and 0 <= x < 1 << 63 for x in numbers):
            raise nonsense(pod, "a size that is none", name)
        offset, length, inode, mtime_ns, crc = numbers
        kind = kind_of(name)
        if kind is None or (how == "whole") == kind.grows:
            raise nonsense(pod, "a file that no run has", name)
        if offset + length > (MAX_FILE_BYTES if kind.grows else MAX_WHOLE_BYTES) or length > len(data) - at:
            raise nonsense(pod, "a size that cannot be", name)
        start, end = ends.get(name) or _known(asked.get(name) if kind.grows else None)
        fits = {
            "whole": offset == 0, "new": name not in ends, "grow": offset == end and end >= 0,
            "jump": offset > end >= 0, "front": offset + length == start and end >= 0,
        }  # fmt: skip
        if not fits.get(how, False):
            raise nonsense(pod, "bytes that nobody asked for", name)
        if zlib.crc32(data[at : at + length]) != crc:
            raise nonsense(pod, "bytes that are not this file's", name)
        low, high = (offset, offset + length) if how in ("new", "jump") else (start, end)
        ends[name] = (min(low, offset), max(high, offset + length)) if kind.grows else (0, length)
        found.append(News(name, how, offset, inode, mtime_ns, data[at : at + length]))
        at += length
    return found, at


def _known(state: object) -> tuple[int, int]:
    """(start, end) of the newest stretch here; (-1, -1) when there is none."""
    return (int(state[3]), int(state[2])) if isinstance(state, list) else (-1, -1)


def nonsense(pod: str, what: str, value: object = None) -> RemoteError:
    return RemoteError(
        "E-MIRROR-002", f"pod {pod} answered with {what}", value=None if value is None else escape(value, 80),
        expected="an honest pod with the same version of orch", fix=f"orch pods exec {pod} -- uname -a",
    )  # fmt: skip
