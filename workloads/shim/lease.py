"""Device leases: one `flock` a GPU on a machine-wide file, inherited by the rank so that it lasts while anything lives.

Used by the shim before it starts a rank. Who holds a device is written into its file for people; only the lock counts.
The directory may be shared by several users (mode 1777), so nothing in it is trusted: no symlink is followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from workloads.contract.errors import ConflictError, LocalError, escape
from workloads.contract.files import dump_json

DEVICE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
LEASED = "E-LEASE-001"
"""the code of the one error that goes away by itself: somebody else has the device now"""
PATIENCE_S = 2.0
"""A rank that has just ended frees its devices a moment after its parent said so."""


def lease(folder: Path, devices: Sequence[str], holder: dict[str, object], patience_s: float = PATIENCE_S) -> list[int]:
    """Descriptors that hold the locks of all `devices`, or none: ConflictError names the busy one and its holder.

    LocalError when the directory or a file in it cannot be used.
    """
    held: list[int] = []
    deadline = time.monotonic() + patience_s
    try:
        if devices:
            _make_folder(folder)
        for device in sorted(set(devices)):  # one order for everybody: two shims never hold half each
            held.append(_lease_one(folder, device, holder, deadline))
    except OSError as e:
        release(held)
        raise LocalError(
            "E-LEASE-002", f"devices cannot be leased in {folder}: {e}", where=str(folder),
            fix="make it a writable folder with room (mode 1777), or remove it: it is made anew",
        ) from e  # fmt: skip
    except ConflictError:
        release(held)
        raise
    return held


def release(held: list[int]) -> None:
    """Give up our share of the locks. What inherited them keeps them."""
    while held:
        os.close(held.pop())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
        folder.chmod(0o1777)  # mkdir's mode is cut by the umask
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(folder)) from None


def _lease_one(folder: Path, device: str, holder: dict[str, object], deadline: float) -> int:
    if not DEVICE_PATTERN.fullmatch(device):
        raise ConflictError("E-LEASE-003", "this is not the name of a device", value=device)
    path = folder / f"{device}.lock"
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _holder_of(fd)
            os.close(fd)
            if time.monotonic() >= deadline:
                raise ConflictError(LEASED, f"{device} is leased by {owner}", where=str(path)) from None
            time.sleep(0.05)
            continue
        if _is_still(path, fd):
            with contextlib.suppress(OSError):  # the file may be another user's: the lock alone counts
                os.ftruncate(fd, 0)
                os.pwrite(fd, dump_json(holder), 0)
            return fd
        os.close(fd)  # it was removed while we waited: lock the file that others see


def _open(path: Path) -> int:
    """Open or make the lock file. Never O_CREAT on a file that exists: in a sticky directory the kernel may refuse
    that for another user's file (fs.protected_regular)."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, os.O_RDWR | flags)
    except PermissionError:
        fd = os.open(path, os.O_RDONLY | flags)  # enough for a lock
    except FileNotFoundError:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
            os.fchmod(fd, 0o666)
        except FileExistsError:
            return _open(path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def _is_still(path: Path, fd: int) -> bool:
    try:
        there, ours = path.lstat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _holder_of(fd: int) -> str:
    """The holder's own words, for an error message: bounded, escaped, never trusted."""
    try:
        row = json.loads(os.pread(fd, 4096, 0))
        words = ", ".join(f"{k} {row[k]}" for k in ("run", "rank", "pid", "uid") if k in row)
    except (OSError, ValueError, TypeError, RecursionError):
        words = ""
    return escape(words or "an unnamed holder", 200)
