"""Small, read-only and failing disks for tests that are root; `Unavailable` with the reason elsewhere."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs.h
NOLOGFLUSH = 2


class Unavailable(RuntimeError):
    """This machine cannot carry such a disk; the message says why."""


def sh(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Unavailable(f"{' '.join(argv)}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def need(*tools: str) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Unavailable("needs root on Linux")
    absent = [t for t in tools if shutil.which(t) is None]
    if absent:
        raise Unavailable(f"needs {', '.join(absent)}")


@contextmanager
def mounted(place: Path, *how: str) -> Iterator[Path]:
    """`mount HOW place`, until the end of the block."""
    need("mount", "umount")
    place.mkdir(parents=True, exist_ok=True)
    sh("mount", *how, str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@contextmanager
def tmpfs(place: Path, size: str) -> Iterator[Path]:
    with mounted(place, "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs"):
        yield place


@contextmanager
def ext4(image: Path, place: Path, size: str = "24M", options: str = "commit=300") -> Iterator[Path]:
    """A new ext4 in the sparse file `image`. Nothing is committed to it but by fsync: `commit=300`."""
    need("mkfs.ext4", "truncate")
    sh("truncate", "-s", size, str(image))
    sh("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", str(image))
    with mounted(place, "-o", f"loop,{options}", str(image)):
        yield place


def shut_down(place: Path) -> None:
    """Cut the power of the ext4 mounted at `place`: nothing more is written, its journal neither; it answers EIO."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
    except OSError as e:
        raise Unavailable(f"this ext4 cannot be shut down: {e}") from e
    finally:
        os.close(fd)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as f:
        while True:
            try:
                f.write(b"x" * 4096)
            except OSError:
                return
