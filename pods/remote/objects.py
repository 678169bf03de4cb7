"""Files by the hash of their bytes, below `$ORCH_HOME/code/objects`. Whatever has its final name is whole.

An object is born under another name and renamed once its hash is checked. One large enough to be hard-linked into a
run's code (`LINK_BYTES`) is read-only, is on the disk before it has its name, and carries a fixed mtime: one with any
other was written to by somebody, and is hashed before it is used again. Smaller ones are hashed whenever they are
copied. Used by `pods.remote.code` alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pods.remote.manifest import MAX_FILE_BYTES, Entry, is_sha256
from workloads.contract.errors import ConflictError, IntegrityError, RemoteError
from workloads.contract.files import write_all
from workloads.contract.rundir import OrchHome

LINK_BYTES = 64 << 10
STAMP_S = 1_000_000_000
PART_SUFFIX = ".part"
_CHUNK = 1 << 20


class Store:
    def __init__(self, home: OrchHome) -> None:
        self.path = home.code_store / "objects"

    def object(self, sha256: str) -> Path:
        if not is_sha256(sha256):
            raise RemoteError("E-CODE-007", "that is no hash", value=sha256)
        return self.path / sha256[:2] / sha256

    def has(self, sha256: str, size: int) -> bool:
        """Whether the object is there and nobody has written to it; a damaged one is removed."""
        path = self.object(sha256)
        try:
            st = os.lstat(path)
        except FileNotFoundError:
            return False
        whole = stat.S_ISREG(st.st_mode) and st.st_size == size
        if whole and (size < LINK_BYTES or st.st_mtime_ns == STAMP_S * 10**9):
            return True
        if stat.S_ISREG(st.st_mode) and _sha256(path) == sha256:
            _settle(path)
            return whole
        self.drop(sha256)
        return False

    def drop(self, sha256: str) -> None:
        self.object(sha256).unlink(missing_ok=True)

    def put(self, sha256: str, data: bytes) -> None:
        """Store an object whole. IntegrityError when the bytes are others."""
        path = self.object(sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _others(sha256)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".{sha256[:16]}.{secrets.token_hex(4)}{PART_SUFFIX}")
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                write_all(fd, data)
                _finish(fd, len(data))
            finally:
                os.close(fd)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def arrived(self, sha256: str) -> int:
        """How many bytes of a large object have come so far."""
        try:
            return self._part(sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, sha256: str, size: int, offset: int, data: bytes) -> int:
        """Add a piece of a large object, and give it its name when it is whole; the bytes that are there now.

        IntegrityError, and every byte of it removed, when the whole is not what it was called.
        """
        if not 0 <= offset <= offset + len(data) <= size <= MAX_FILE_BYTES:
            raise RemoteError("E-CODE-008", "a piece lies outside its file", value=offset)
        path, part = self.object(sha256), self._part(sha256)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(part) as fd:
            if self.has(sha256, size):  # somebody else has finished it meanwhile
                part.unlink(missing_ok=True)
                return size
            have = os.fstat(fd).st_size
            if offset > have:
                raise ConflictError("E-CODE-009", "bytes are missing before these", where=str(part), value=offset)
            os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data)
            have = max(have, offset + len(data))
            if have < size:
                return have
            if have != size or _sha256(part) != sha256:
                part.unlink(missing_ok=True)
                raise _others(sha256)
            _finish(fd, size)
            part.replace(path)
            return size

    def copy(self, entry: Entry, target: str, *, durable: bool = False) -> None:
        """A copy of the object, its hash checked on the way. A damaged object is removed: FileNotFoundError then."""
        source = self.object(entry.value)
        digest = hashlib.sha256()
        mode = 0o700 if entry.kind == "x" else 0o600
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            with source.open("rb", buffering=0) as f:
                while chunk := f.read(_CHUNK):
                    digest.update(chunk)
                    write_all(out, chunk)
            if durable:
                os.fsync(out)
        finally:
            os.close(out)
        if digest.hexdigest() != entry.value:
            self.drop(entry.value)
            raise FileNotFoundError(entry.value)

    def link(self, entry: Entry, target: str) -> None:
        """A hard link to the object; a copy where the file system has none. FileNotFoundError as `copy`."""
        if not self.has(entry.value, entry.size):
            raise FileNotFoundError(entry.value)
        try:
            os.link(self.object(entry.value), target, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:
            self.copy(entry, target)

    def free_bytes(self) -> int:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def unused(self, used: set[str], before_s: float) -> Iterator[tuple[Path, int]]:
        """(path, bytes) of objects that are not in `used`, and of parts, that came before Unix second `before_s`."""
        for folder in sorted(self.path.glob("??")):
            for path in folder.iterdir():
                st = path.lstat()
                if st.st_ctime < before_s and path.name not in used:
                    yield path, st.st_size

    def _part(self, sha256: str) -> Path:
        path = self.object(sha256)
        return path.with_name(f".{sha256}{PART_SUFFIX}")


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[int]:
    """The descriptor of the file that has this name now, locked: one that was renamed meanwhile is let go."""
    while True:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is(part, fd):
                yield fd
                return
        finally:
            os.close(fd)


def _is(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _finish(fd: int, size: int) -> None:
    if size >= LINK_BYTES:
        os.fsync(fd)
    os.fchmod(fd, 0o400)
    os.utime(fd, (STAMP_S, STAMP_S))


def _settle(path: Path) -> None:
    path.chmod(0o400)
    os.utime(path, (STAMP_S, STAMP_S))


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _others(sha256: str) -> IntegrityError:
    return IntegrityError(
        "E-CODE-005", "the bytes of a file that arrived are not those that were sent", expected=f"sha256 {sha256}",
        fix="send it again; when it happens twice the pod's disk or memory is bad",
    )  # fmt: skip
