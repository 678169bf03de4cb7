"""Sending code to a pod: only files that it lacks, each checked by its hash, and going on where an earlier try was cut.

`scan` and `notes` (`pods.snapshotscan`) look at a directory; `push_snapshot` sends what they found, `push_code` does
both, and `push_tree` sends orch's own files. Called by the launch, `orch pods bootstrap` and `orch resume`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pods import snapshotcache
from pods.pod import Pod
from pods.remote.manifest import Entry, ordered, pack_manifest, snapshot_id
from pods.snapshotscan import Snapshot, notes, scan
from pods.tree import source_root, tree_files, tree_hash
from workloads.contract.errors import IntegrityError, LocalError, RemoteError
from workloads.contract.rundir import OrchHome

__all__ = ["FileChanged", "Pushed", "Snapshot", "notes", "push_code", "push_snapshot", "push_tree", "scan"]

BATCH_BYTES = 4 << 20
BATCH_FILES = 2000
ROUNDS = 3
TRIES = 3
LOOK_S = 60.0
BATCH_S = 120.0
TREE_S = 300.0
SAY_EVERY_S = 1.0
Say = Callable[[str], None]


class FileChanged(LocalError):
    """A file is not any more what the snapshot says: somebody saved it meanwhile."""


@dataclass(frozen=True)
class Pushed:
    id: str
    files_sent: int
    bytes_sent: int
    seconds: float


def push_code(pod: Pod, directory: Path, home: OrchHome, say: Say = lambda _: None) -> tuple[Snapshot, Pushed]:
    """Have the code around `directory` on the pod as it is now; a file saved meanwhile is looked at again."""
    for left in reversed(range(TRIES)):
        snapshot = scan(directory, home)
        try:
            return snapshot, push_snapshot(pod, snapshot, home=home, say=say)
        except FileChanged:
            if not left:
                raise
    raise AssertionError("not reached")


def push_snapshot(
    pod: Pod,
    snapshot: Snapshot,
    *,
    base: str | None = None,
    home: OrchHome | None = None,
    say: Say = lambda _: None,
) -> Pushed:
    """Have a snapshot in the pod's store. FileChanged when a file of it is another now; nothing is lost by a cut.

    `base`: the id of a snapshot that the pod has, told of in `home`'s cache; default: the last one sent there.
    """
    began = time.monotonic()
    top = os.fspath(snapshot.root)
    sender = _Sender(pod, snapshot, say)
    if pod.call("code.look", {"id": snapshot.id}, timeout_s=LOOK_S).fields.get("there") is not True:
        chosen = base or (snapshotcache.last_sent(home, pod.name, top) if home else None)
        entries = snapshotcache.manifest(home, chosen) if home and chosen else None
        sender.push(chosen if entries else None, entries)
    if home is not None and snapshotcache.last_sent(home, pod.name, top) != snapshot.id:
        snapshotcache.remember(home, pod.name, top, snapshot.id, snapshot.entries)
    return Pushed(snapshot.id, sender.files, sender.bytes, time.monotonic() - began)


def push_tree(pod: Pod, say: Say = lambda _: None) -> str:
    """Have this process's own tree on the pod; its absolute path there."""
    root = source_root()
    digest = tree_hash(root)
    found = pod.call("home.tree", {"hash": digest}).fields
    if found.get("there") is not True:
        snapshot = tree_snapshot(root)
        push_snapshot(pod, snapshot, say=say)
        try:
            found = pod.call("code.tree", {"hash": digest, "id": snapshot.id}, timeout_s=TREE_S).fields
        except IntegrityError:
            tree_hash.cache_clear()
            if tree_hash(root) != digest:
                raise _tree_changed(root) from None
            raise
    path = found.get("path")
    if not isinstance(path, str) or path != str(pod.home.tree(digest)):
        raise RemoteError("E-CODE-030", f"pod {pod.name} puts orch's own files elsewhere", value=path)
    return path


def tree_snapshot(root: Path) -> Snapshot:
    """Orch's own files below `root`; the directory is not asked what git thinks of them."""
    entries = []
    for path in tree_files(root):
        try:
            data = path.read_bytes()
        except FileNotFoundError as e:
            raise _tree_changed(path) from e
        name = path.relative_to(root).as_posix()
        entries.append(Entry(name, "f", hashlib.sha256(data).hexdigest(), len(data)))
    return Snapshot(snapshot_id(entries), root, "", ordered(entries))


def _tree_changed(where: Path) -> FileChanged:
    return FileChanged(
        "E-CODE-034", "orch's own files changed while this command ran", where=str(where), fix="type it again"
    )


class _Sender:
    def __init__(self, pod: Pod, snapshot: Snapshot, say: Say) -> None:
        self.pod, self.snapshot, self.say = pod, snapshot, say
        self.files = self.bytes = 0
        self._said = time.monotonic()
        self._of = (0, 0)

    def push(self, base: str | None, entries: Sequence[Entry] | None) -> None:
        """Offer, send what is missing, commit; again while the pod says that something is missing still."""
        known = {e.path: e for e in entries} if entries is not None else None
        ident = self.snapshot.id
        answer = self._call("code.offer", {"id": ident, "base": base}, pack_manifest(self.snapshot.entries, known))
        if answer.get("based") is not True:
            answer = self._call("code.offer", {"id": ident, "base": None}, pack_manifest(self.snapshot.entries))
        missing = self._rows(answer.get("missing"))
        have = answer.get("have")
        for _ in range(ROUNDS):
            if not missing:
                return
            self._send([self.snapshot.entries[i] for i in missing], self._parts(have))
            have = None
            missing = self._rows(self._call("code.commit", {"id": ident}).get("missing"))
        if missing:
            raise RemoteError(
                "E-CODE-031", f"pod {self.pod.name} does not keep the files it is sent",
                value=self.snapshot.entries[missing[0]].path, fix=f"orch pods check {self.pod.name}",
            )  # fmt: skip

    def _call(self, op: str, args: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
        return self.pod.call(op, args, data, timeout_s=BATCH_S).fields

    def _rows(self, rows: object) -> list[int]:
        """What a pod asks for: rows of this snapshot that are files, and nothing else."""
        entries = self.snapshot.entries
        good = isinstance(rows, list) and all(
            type(i) is int and 0 <= i < len(entries) and entries[i].kind != "l" for i in rows
        )
        if not good:
            raise RemoteError("E-CODE-032", f"pod {self.pod.name} asks for files that are none", value=rows)
        assert isinstance(rows, list)
        return sorted(set(rows))

    def _parts(self, have: object) -> dict[str, int]:
        """sha256 -> bytes that are there already."""
        entries = self.snapshot.entries
        found = {}
        for key, value in have.items() if isinstance(have, dict) else ():
            row = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 7 else -1
            if 0 <= row < len(entries) and type(value) is int and 0 <= value <= entries[row].size:
                found[entries[row].value] = value
        return found

    def _send(self, entries: Sequence[Entry], have: dict[str, int]) -> None:
        self._of = (self.files + len(entries), self.bytes + sum(e.size for e in entries))
        batch: list[tuple[Entry, bytes]] = []
        size = 0
        for entry in entries:
            if entry.size > BATCH_BYTES:
                self._send_large(entry, have.get(entry.value, 0))
                continue
            if batch and (size + entry.size > BATCH_BYTES or len(batch) >= BATCH_FILES):
                self._send_batch(batch)
                batch, size = [], 0
            batch.append((entry, _read(self.snapshot.root, entry)))
            size += entry.size
        if batch:
            self._send_batch(batch)

    def _send_batch(self, batch: Sequence[tuple[Entry, bytes]]) -> None:
        rows = [[e.value, e.size] for e, _ in batch]
        self._call("code.blobs", {"blobs": rows}, b"".join(data for _, data in batch))
        self._sent(len(batch), sum(e.size for e, _ in batch))

    def _send_large(self, entry: Entry, have: int) -> None:
        told = {"sha256": entry.value, "size": entry.size}
        at = min(have, entry.size - 1)  # the last byte is always sent: it makes the pod check and name the file
        try:
            for chunk in _pieces(self.snapshot.root, entry, at):
                self._call("code.piece", {**told, "offset": at}, chunk)
                at += len(chunk)
                self._sent(0, len(chunk))
        except IntegrityError:
            _refuse_changed(self.snapshot.root, entry)
            raise
        self._sent(1, 0)

    def _sent(self, files: int, size: int) -> None:
        self.files += files
        self.bytes += size
        now = time.monotonic()
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            self.say(
                f"code: {self.files} of {self._of[0]} files, {self.bytes / 2**20:.1f} of {self._of[1] / 2**20:.1f} MiB"
            )


def _open(root: Path, entry: Entry) -> int:
    try:
        fd = os.open(root / entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as e:
        raise _changed(entry, e.strerror or "it cannot be opened") from e
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode) or st.st_size != entry.size:
        os.close(fd)
        raise _changed(entry, f"{st.st_size} bytes instead of {entry.size}")
    return fd


def _read(root: Path, entry: Entry) -> bytes:
    with os.fdopen(_open(root, entry), "rb") as f:
        data = f.read(entry.size + 1)
    if hashlib.sha256(data).hexdigest() != entry.value:
        raise _changed(entry, "other bytes")
    return data


def _pieces(root: Path, entry: Entry, offset: int) -> Iterator[bytes]:
    with os.fdopen(_open(root, entry), "rb") as f:
        f.seek(offset)
        while offset < entry.size:
            chunk = f.read(min(BATCH_BYTES, entry.size - offset))
            if not chunk:
                raise _changed(entry, "it became shorter")
            yield chunk
            offset += len(chunk)


def _refuse_changed(root: Path, entry: Entry) -> None:
    with os.fdopen(_open(root, entry), "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != entry.value:
            raise _changed(entry, "other bytes")


def _changed(entry: Entry, how: str) -> FileChanged:
    return FileChanged(
        "E-CODE-033", "a file changed while the code was sent", where=entry.path, value=how, fix="launch again"
    )
