"""Where dumps lie in a run directory, and how many are kept.

A process's own file is appended to by itself; whatever was read from outside, and everything that a watchdog asked for,
goes to files of its own. The oldest of those are removed; a living rank's own file never is. Called by `dump` and
`stackdump`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from workloads.contract.files import write_all
from workloads.contract.rundir import RunDir, utc_stamp

MAX_FILES = 512  # of each kind: eight dumps of 64 ranks
MAX_BYTES = 512 << 20  # of each kind
MAX_OWN_BYTES = 64 << 20  # of one process's own file
DUMP_NAME = re.compile(r"stackdump_rank\d{1,6}_\d{8}T\d{6}Z\.txt")

_UTC = r"\d{8}T\d{6}Z"
_KINDS = {
    "watchdog dumps": re.compile(rf"watchdog_stackdump_rank\d{{1,6}}_{_UTC}\.txt"),
    "stack dumps": re.compile(rf"stackdump_rank\d{{1,6}}_{_UTC}\.txt"),
    "NCCL flight records": re.compile(rf"nccl_rank\d{{1,6}}_{_UTC}\.pickle|nccl_trace_a\d{{1,9}}_rank\d{{1,6}}"),
    "GPU tables": re.compile(rf"nvidia_smi_{_UTC}\.txt"),
}


def own_file(run: RunDir, environ: dict[str, str]) -> Path | None:
    """ORCH_STACKDUMP of that environment, if it is a dump file of this run: a process may say anything there."""
    path = Path(environ.get("ORCH_STACKDUMP", ""))
    try:
        inside = path.parent.samefile(run.stackdumps)
    except OSError:
        return None
    return path if inside and DUMP_NAME.fullmatch(path.name) and not path.is_symlink() else None


def has_open(pid: int, file: Path) -> bool:
    """True when the process holds `file` open, as faulthandler does. A daemon that closed all files does not.

    Only a descriptor whose link has that name is looked at: stat of another one may hang with its file system.
    """
    try:
        st = file.stat()
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for fd in fds:
        with contextlib.suppress(OSError):
            link = Path(f"/proc/{pid}/fd/{fd}")
            if link.readlink().name == file.name:
                there = link.stat()
                if (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino):
                    return True
    return False


def append_dump(file: Path, data: bytes) -> int:
    """Append, and return where `data` begins. OSError when it is a link or the disk is full.

    A file beyond `MAX_OWN_BYTES` is begun again: nobody reads that many dumps, and they would fill the disk.
    """
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        before = os.fstat(fd).st_size
        if before > MAX_OWN_BYTES:
            os.ftruncate(fd, 0)
            told = f"(dumps older than {utc_stamp()} were removed here: the file had {before >> 20} MiB)\n".encode()
            write_all(fd, told)
            before = len(told)
        write_all(fd, data)
        return before
    finally:
        os.close(fd)


def keep(file: Path, text: str) -> str:
    """Append `text` to `file`. "", or why it could not be written."""
    try:
        append_dump(file, text.encode(errors="replace"))
    except OSError as e:
        return f"{file.name} could not be written: {e.strerror}"
    return ""


def newest(run: RunDir, count: int) -> list[str]:
    """Names of the newest dump files that hold something, the newest first."""
    found = [(st.st_mtime_ns, name) for name, st in _files(run) if st.st_size and _kind(name)]
    return [name for _, name in sorted(found, reverse=True)[:count]]


def prune(run: RunDir, spare: Collection[str]) -> list[str]:
    """Remove the oldest files beyond the limits, but none in `spare`. What was removed, a sentence a kind."""
    notes = []
    by_kind: dict[str, list[tuple[int, str, int]]] = {}
    for name, st in _files(run):
        kind = _kind(name)
        if kind and name not in spare:
            by_kind.setdefault(kind, []).append((st.st_mtime_ns, name, st.st_size))
    for kind, files in by_kind.items():
        removed = total = 0
        for i, (_, name, size) in enumerate(sorted(files, reverse=True)):
            total += size
            if i >= MAX_FILES or total > MAX_BYTES:
                with contextlib.suppress(OSError):
                    (run.stackdumps / name).unlink()
                    removed += 1
        if removed:
            limits = f"{MAX_FILES} files, {MAX_BYTES >> 20} MiB"
            notes.append(f"{removed} old {kind} were removed (kept: the newest, at most {limits})")
    return notes


def _kind(name: str) -> str | None:
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(name)), None)


def _files(run: RunDir) -> list[tuple[str, os.stat_result]]:
    found = []
    with contextlib.suppress(OSError), os.scandir(run.stackdumps) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                st = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(st.st_mode):
                    found.append((entry.name, st))
    return found
