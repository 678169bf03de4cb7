"""What `$ORCH_HOME/cache/code` remembers between launches: hashes of files, and what was sent to which pod.

All of it can be made again, so a file that is torn or foreign counts as absent, and one that cannot be written is
left. Used by `pods.snapshotscan` and `pods.snapshot`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pods.remote.manifest import Entry, as_bytes, is_id, is_sha256, pack_manifest, snapshot_id, unpack_manifest
from workloads.contract.errors import RemoteError
from workloads.contract.files import atomic_write, read_bytes_bounded, read_json
from workloads.contract.rundir import OrchHome

MAX_BYTES = 64 << 20
RACY_NS = 2_000_000_000  # a file changed this shortly before it was hashed may change again within its time stamp
KEPT_MANIFESTS = 16


def _folder(home: OrchHome) -> Path:
    return home.cache / "code"


def _key(*texts: str) -> str:
    return hashlib.sha256(b"\0".join(as_bytes(t) for t in texts)).hexdigest()[:16]


class HashCache:
    """sha256 of files by path, size, times and inode."""

    def __init__(self, home: OrchHome, top: Path) -> None:
        self.path = _folder(home) / f"hashes-{_key(os.fspath(top))}.json"
        try:
            rows = read_json(self.path, MAX_BYTES).get("files")
        except (OSError, ValueError):
            rows = None
        self._old: dict[str, Any] = rows if isinstance(rows, dict) else {}
        self._new: dict[str, list[Any]] = {}
        self.hashed = 0

    def sha256(self, path: str, file: str, st: os.stat_result) -> str:
        """Of `file`, which is `path` in the tree. OSError when it cannot be read."""
        stamp = [st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino]
        row = self._old.get(path)
        if isinstance(row, list) and row[:4] == stamp and is_sha256(row[-1]):
            self._new[path] = row
            return str(row[-1])
        now = time.time_ns()
        with open(file, "rb") as f:  # noqa: PTH123  ten thousand of them
            found = hashlib.file_digest(f, "sha256").hexdigest()
        self.hashed += 1
        if now - max(st.st_mtime_ns, st.st_ctime_ns) > RACY_NS:
            self._new[path] = [*stamp, found]
        return found

    def save(self) -> None:
        if self._new != self._old:
            _write(self.path, json.dumps({"v": 1, "files": self._new}, separators=(",", ":")).encode())


def remember(home: OrchHome, pod: str, top: str, ident: str, entries: Sequence[Entry]) -> None:
    """That `pod` has this snapshot of `top`: the next one is told as a difference."""
    folder = _folder(home)
    _write(folder / f"manifest-{ident}.json", pack_manifest(entries))
    _write(folder / f"sent-{_key(pod, top)}", ident.encode())
    with contextlib.suppress(OSError):
        kept = sorted(folder.glob("manifest-*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in kept[KEPT_MANIFESTS:]:
            path.unlink(missing_ok=True)


def last_sent(home: OrchHome, pod: str, top: str) -> str | None:
    try:
        ident = read_bytes_bounded(_folder(home) / f"sent-{_key(pod, top)}", 64).decode()
    except (OSError, ValueError):
        return None
    return ident if is_id(ident) else None


def manifest(home: OrchHome, ident: str) -> tuple[Entry, ...] | None:
    """The files of a snapshot that was sent somewhere."""
    try:
        entries = unpack_manifest(read_bytes_bounded(_folder(home) / f"manifest-{ident}.json", MAX_BYTES))
    except (OSError, ValueError, RemoteError):
        return None
    return entries if snapshot_id(entries) == ident else None


def _write(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk at home costs time, not the launch
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(path, data, durable=False)
