"""Files and directories to a pod and back: resumable, hashed, nothing overwritten by halves. On top of `pods.copy`.

What a pod says is not trusted: its names are taken only below where they were asked for, its sizes only within the free
disk, links are neither followed nor made. Links, FIFOs and devices are left out and told. Called by `orch pods push`
and `pull`.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.inventory.listing import Entry, entries_of
from orchestrator.runs.render import one_line
from pods.copy import HASH_S, pull_file, push_file
from pods.pod import Pod
from workloads.contract.errors import ConflictError, LocalError, RemoteError, UsageError

LIST_S = 120.0
SPARE_BYTES = 16 << 20
MAX_DIRS_A_CALL = 1000
OnBytes = Callable[[str, int], None]
"""(file, n): n more bytes of it are there"""


@dataclass
class Moved:
    """What was done. `left_out`: names and why; `odd`: names that could not be taken, which is a failure."""

    path: str
    files: int = 0
    size_bytes: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        rows = {"left_out": self.left_out, "not_taken": self.odd}
        lists = {k: [{"name": n, "why": w} for n, w in v] for k, v in rows.items()}
        return {"path": self.path, "files": self.files, "bytes": self.size_bytes, **lists}


def push(pod: Pod, source: Path, target: str, total: Callable[[int], None], on_bytes: OnBytes) -> Moved:
    """Send a file or a directory. A file goes to `target`, or into it where that is a directory (or ends in `/`);
    what is in a directory goes into the directory `target`. `total` is told the bytes to come."""
    try:
        is_dir = source.is_dir()
        mode = source.stat().st_mode
    except OSError as e:
        raise _unreadable(source, e) from e
    room = pod.call("files.room", {"path": target}).fields
    if not is_dir:
        if not stat.S_ISREG(mode):
            raise UsageError("E-PODS-050", "that is neither a file nor a directory", where=str(source))
        into = room.get("kind") == "dir" or target.endswith("/")
        where = str(PurePosixPath(target) / source.name) if into else target
        total(source.stat().st_size)
        sent = push_file(pod, source, where, mode=mode & 0o777, on_bytes=lambda n: on_bytes(source.name, n))
        return Moved(sent, 1, source.stat().st_size)
    if room.get("kind") not in ("dir", "none"):
        raise ConflictError("E-PODS-051", "a file lies where the directory is to go", where=f"{pod.name}:{target}",
                            fix="name another directory")  # fmt: skip
    return _push_tree(pod, source, target, room, total, on_bytes)


def _push_tree(
    pod: Pod, source: Path, target: str, room: Mapping[str, Any], total: Callable[[int], None], on_bytes: OnBytes
) -> Moved:
    moved = Moved(str(room.get("path", target)))
    folders, files = _walk(source, moved)
    there: dict[str, int] = {}
    if room.get("kind") == "dir":
        answer = pod.call("files.list", {"path": target}, timeout_s=LIST_S)
        there = {e.name: e.size for e in entries_of(answer.fields, f"{pod.name}:{target}").entries if e.kind == "file"}
    size = sum(files.values())
    missing = sum(n for name, n in files.items() if there.get(name) != n)
    free = room.get("free")
    if isinstance(free, int) and missing > free:
        raise RemoteError(
            "E-PODS-052", "too little free disk on the pod for this directory", where=f"{pod.name}:{target}",
            value=f"{free >> 20} MiB free", expected=f"{missing >> 20} MiB", fix="free some space there: orch pods gc",
        )  # fmt: skip
    total(size)
    base = PurePosixPath(target)
    for i in range(0, max(len(folders), 1), MAX_DIRS_A_CALL):
        some = [str(base), *(str(base / f) for f in folders[i : i + MAX_DIRS_A_CALL])]
        pod.call("files.mkdir", {"paths": some})
    for name in files:
        path = source / name
        mode = path.stat().st_mode & 0o777
        push_file(pod, path, str(base / name), mode=mode, on_bytes=partial(on_bytes, name))
        moved.files += 1
    moved.size_bytes = size
    return moved


def _walk(source: Path, moved: Moved) -> tuple[list[str], dict[str, int]]:
    """(directories, file to size) below `source`; what is neither is noted as left out."""
    folders: list[str] = []
    files: dict[str, int] = {}

    def failed(e: OSError) -> None:
        raise _unreadable(Path(str(e.filename)), e)

    for folder, names, leaves in os.walk(source, onerror=failed):
        names.sort()
        for name in sorted([*names, *leaves]):
            path = Path(folder) / name
            relative, st = path.relative_to(source).as_posix(), path.lstat()
            if stat.S_ISDIR(st.st_mode):
                folders.append(relative)
            elif stat.S_ISREG(st.st_mode):
                files[relative] = st.st_size
            else:
                moved.left_out.append((relative, "a link" if stat.S_ISLNK(st.st_mode) else "no regular file"))
    return folders, files


def pull(pod: Pod, source: str, target: Path, total: Callable[[int], None], on_bytes: OnBytes) -> Moved:
    """Fetch a file or a directory. Where it goes: as in `push`. IntegrityError when its names lead away."""
    listing = entries_of(pod.call("files.list", {"path": source}, timeout_s=LIST_S).fields, f"{pod.name}:{source}")
    if listing.kind == "file":
        return _pull_one(pod, source, target, total, on_bytes)
    if listing.kind != "dir":
        raise RemoteError("E-PODS-053", "that is neither a file nor a directory", where=f"{pod.name}:{source}")
    if target.exists() and not target.is_dir():
        raise LocalError("E-PODS-054", "a file lies where the directory is to go", where=str(target),
                         fix="name another directory")  # fmt: skip
    moved = Moved(str(target), left_out=list(listing.left_out), odd=list(listing.odd))
    files = [e for e in listing.entries if e.kind == "file"]
    for entry in listing.entries:
        _refuse_links(target, entry.name)
    size = sum(e.size for e in files)
    _refuse_too_large(target, sum(e.size for e in files if _size(target / e.name) != e.size))
    total(size)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for entry in listing.entries:
            if entry.kind == "dir":
                (target / entry.name).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LocalError("E-PODS-055", f"a directory cannot be made: {e.strerror}", where=str(e.filename)) from e
    for entry in files:
        _fetch(pod, str(PurePosixPath(source) / entry.name), target / entry.name, entry, on_bytes)
        moved.files += 1
        moved.size_bytes += entry.size
    return moved


def _pull_one(pod: Pod, source: str, target: Path, total: Callable[[int], None], on_bytes: OnBytes) -> Moved:
    name = PurePosixPath(source).name
    if target.is_dir():
        if name in ("", "..", ".", "~"):
            raise UsageError("E-PODS-056", "the file has no name to be put under", value=source, fix="name the file")
        target = target / name
    answer = pod.call("files.read", {"path": source, "offset": 0, "limit": 0}).fields
    size, mode = answer.get("size"), answer.get("mode")
    if type(size) is not int or size < 0 or type(mode) is not int:
        raise RemoteError("E-PODS-057", "the pod gives no size for the file", where=f"{pod.name}:{source}")
    _refuse_too_large(target, size if _size(target) != size else 0)
    total(size)
    _fetch(pod, source, target, Entry(name, "file", size, mode), on_bytes)
    return Moved(str(target), 1, size)


def _fetch(pod: Pod, source: str, target: Path, entry: Entry, on_bytes: OnBytes) -> None:
    """One file, unless the very same bytes lie there."""
    if _size(target) == entry.size:
        from pods.remote.files import sha256_of

        found = pod.call("files.digest", {"path": source}, timeout_s=HASH_S).fields.get("sha256")
        if found == sha256_of(target):
            on_bytes(entry.name, entry.size)
            return
    pull_file(pod, source, target, size=entry.size, on_bytes=lambda n: on_bytes(entry.name, n))
    target.chmod(0o600 | (entry.mode & 0o755))


def _refuse_links(target: Path, name: str) -> None:
    """No directory on the way to `name` may be a link here: it could lead out of `target`."""
    path = target
    for part in PurePosixPath(name).parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise LocalError(
                "E-PODS-058",
                "a link lies where a directory is to go",
                where=str(path),
                fix="remove it, or name another",
            )


def _refuse_too_large(target: Path, size: int) -> None:
    there = target.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if size > free - SPARE_BYTES:
        raise LocalError(
            "E-PODS-059", "too little free disk here for what the pod says it has", where=str(there),
            value=f"{free >> 20} MiB free", expected=f"{size >> 20} MiB, and some to spare",
            fix="name another directory",
        )  # fmt: skip


def _size(path: Path) -> int | None:
    """The size of a regular file, None for anything else."""
    try:
        st = path.lstat()
    except OSError:
        return None
    return st.st_size if stat.S_ISREG(st.st_mode) else None


def _unreadable(path: Path, e: OSError) -> LocalError:
    return LocalError("E-PODS-060", f"this cannot be read: {e.strerror}", where=str(path), fix=f"ls -ld {path}")


def summary(moved: Moved) -> list[str]:
    """What was left out, for a person."""
    rows = [*moved.left_out, *moved.odd]
    lines = [f"  left out: {one_line(name, 200)} ({why})" for name, why in rows[:10]]
    return [*lines, *([f"  and {len(rows) - 10} more"] if len(rows) > 10 else [])]
