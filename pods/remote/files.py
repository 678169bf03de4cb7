"""Files on a pod: read by offset, and written so that a cut loses nothing already sent.

An upload is `offer` (what is there already?), `append` as often as needed, `commit` (hash checked, then renamed). The
bytes on their way lie beside the target as `.<name>.<12 hex of its hash>.part`, so an upload of other content never
goes on with them. `~` is the user's home on the pod; a relative path is below it, as with scp.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pods.remote.dispatch import Answer, Operation, want
from workloads.contract.errors import ConflictError, IntegrityError, RemoteError
from workloads.contract.files import fsync_dir, write_all
from workloads.contract.rundir import OrchHome

MAX_READ_BYTES = 16 << 20
MAX_ENTRIES = 100_000
CHUNK_BYTES = 1 << 20


def locate(text: str) -> Path:
    """An absolute path on this pod."""
    if "\0" in text or not text:
        raise RemoteError("E-FILE-001", "that is no path", value=text)
    return (Path.home() / Path(text).expanduser()).absolute()


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _part(path: Path, sha256: str) -> Path:
    return path.with_name(f".{path.name[:200]}.{sha256[:12]}.part")


def offer(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{path, size, sha256} -> {path, done, have}: whether the very file is there, or how many bytes of it are."""
    path, size, sha256 = locate(want(args, "path", str)), want(args, "size", int), want(args, "sha256", str)
    if path.is_dir():
        raise ConflictError("E-FILE-002", "a directory lies there", where=str(path), fix="name the file in it")
    if path.is_file() and path.stat().st_size == size and sha256_of(path) == sha256:
        return Answer({"path": str(path), "done": True, "have": size})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = _part(path, sha256)
    have = part.stat().st_size if part.is_file() else 0
    if have > size:
        part.unlink(missing_ok=True)
        have = 0
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < size - have:
        raise RemoteError(
            "E-FILE-003", "too little free disk on the pod for this file", where=str(path.parent),
            value=f"{free.f_bavail * free.f_frsize >> 20} MiB free", expected=f"{size - have >> 20} MiB",
            fix="free some space there: orch pods gc",
        )  # fmt: skip
    return Answer({"path": str(path), "done": False, "have": have})


def append(_: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
    """{path, sha256, offset} and bytes -> {have}. Two may send the same file at once: they write the same bytes."""
    path, sha256, offset = locate(want(args, "path", str)), want(args, "sha256", str), want(args, "offset", int)
    part = _part(path, sha256)
    create = os.O_CREAT if offset == 0 else 0
    try:
        fd = os.open(part, os.O_WRONLY | create | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        raise _overtaken(part, offset) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        if offset > size:
            raise _overtaken(part, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        write_all(fd, data)
        return Answer({"have": max(offset + len(data), size)})
    finally:
        os.close(fd)


def _overtaken(part: Path, offset: int) -> ConflictError:
    return ConflictError(
        "E-FILE-004", "the beginning of this file is not there any more: another upload of it ended meanwhile",
        where=str(part), value=offset, fix="send it again",
    )  # fmt: skip


def commit(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{path, size, sha256, mode} -> {path}. IntegrityError, and the bytes removed, when they are not as promised."""
    path, size, sha256 = locate(want(args, "path", str)), want(args, "size", int), want(args, "sha256", str)
    part = _part(path, sha256)
    if path.is_file() and path.stat().st_size == size and sha256_of(path) == sha256:
        part.unlink(missing_ok=True)
        return Answer({"path": str(path)})  # another upload of the same file was faster
    if size == 0:
        part.touch(mode=0o600)
    try:
        found, there = sha256_of(part), part.stat().st_size
    except FileNotFoundError:
        raise _overtaken(part, 0) from None
    if there < size:
        raise _overtaken(part, there)
    if found != sha256:
        part.unlink(missing_ok=True)
        raise IntegrityError(
            "E-FILE-005", "the bytes that arrived are not those that were sent", where=str(path), value=found,
            expected=sha256, fix="send it again; when it happens twice the pod's disk or memory is bad",
        )  # fmt: skip
    try:
        part.chmod(want(args, "mode", int) & 0o777)
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
    except FileNotFoundError:
        raise _overtaken(part, size) from None
    fsync_dir(path.parent)
    return Answer({"path": str(path)})


def read(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{path, offset, limit} -> {size, mtime_ns} and bytes of a regular file. Links are followed: a person named it."""
    path, offset = locate(want(args, "path", str)), want(args, "offset", int)
    limit = min(max(want(args, "limit", int), 0), MAX_READ_BYTES)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise RemoteError("E-FILE-006", "that is no regular file", where=str(path))
        data = os.pread(fd, limit, max(offset, 0))
        return Answer({"size": st.st_size, "mtime_ns": st.st_mtime_ns, "mode": st.st_mode & 0o777}, data)
    finally:
        os.close(fd)


def digest(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{path} -> {sha256, size} of a regular file."""
    path = locate(want(args, "path", str))
    return Answer({"sha256": sha256_of(path), "size": path.stat().st_size})


def listing(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{path} -> {path, kind, entries: [[name, kind, size, mode]]}: what lies below, relative, links not followed.

    A name that is no UTF-8 comes as `base64:<its bytes>`. `kind` is file, dir, link or other.
    """
    top = locate(want(args, "path", str))
    kind = _kind(top.lstat().st_mode if not top.is_symlink() else top.stat().st_mode)
    entries: list[list[Any]] = []
    if kind == "dir":
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted([*folders, *names]):
                path = Path(folder) / name
                st = path.lstat()
                entries.append([_text(path.relative_to(top)), _kind(st.st_mode), st.st_size, st.st_mode & 0o777])
            if len(entries) > MAX_ENTRIES:
                raise RemoteError("E-FILE-007", f"more than {MAX_ENTRIES} files lie there", where=str(top))
    return Answer({"path": str(top), "kind": kind, "entries": entries})


def room(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{path} -> {path, kind, free}: what lies there (`none` for nothing), and the bytes free where it would go."""
    path = locate(want(args, "path", str))
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    free = os.statvfs(there)
    kind = _kind(path.stat().st_mode) if path.exists() else "link" if path.is_symlink() else "none"
    return Answer({"path": str(path), "kind": kind, "free": free.f_bavail * free.f_frsize})


def mkdir(_: OrchHome, args: Mapping[str, Any], __: bytes) -> Answer:
    """{paths} -> {}: directories that are to be there; those that are stay as they are."""
    for text in want(args, "paths", list):
        locate(str(text)).mkdir(parents=True, exist_ok=True, mode=0o700)
    return Answer()


def _text(path: Path) -> str:
    raw = os.fsencode(path)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    return "dir" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "other"


OPERATIONS: Mapping[str, Operation] = {
    "offer": offer, "append": append, "commit": commit, "read": read, "digest": digest, "list": listing,
    "room": room, "mkdir": mkdir,
}  # fmt: skip
