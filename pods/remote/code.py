"""Content-addressed code on a pod: a store of files by hash, snapshots made of them, and copies of snapshots.

    $ORCH_HOME/code/objects/<2 hex>/<sha256>   `pods.remote.objects`
    $ORCH_HOME/code/<id>.json                  a snapshot whose objects were all there; its mtime is its last use
    $ORCH_HOME/code/<id>.offer                 one whose objects are on their way

A run gets its own copy of its snapshot, so that the program may write to the files it came with, as at home. Of a
snapshot above 64 MiB the larger files (64 KiB and more) are hard links into the store instead, read-only: a program
that opens one of them to write is refused, unless it runs as root. Then it damages the store, which is seen and mended
(`objects`), and the file in other runs of the same code, which is not.

All operations may be repeated, cut anywhere, and carried out by two at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pods.remote.codestore import keep, load, locked, read
from pods.remote.dispatch import Answer, Operation, want
from pods.remote.manifest import Entry, folders, is_id, snapshot_id, unpack_manifest
from pods.remote.objects import LINK_BYTES, Store, remove_tree
from pods.tree import tree_hash
from workloads.contract.errors import ConflictError, IntegrityError, RemoteError
from workloads.contract.files import fsync_dir
from workloads.contract.rundir import STAGED_PREFIX, OrchHome

COPY_WHOLE_BYTES = 64 << 20
SPARE_BYTES = 16 << 20
LEFTOVER_AGE_S = 86_400.0
YOUNG_S = 3600.0  # objects and offers younger than this may belong to a push that is going on


def materialize(home: OrchHome, snapshot: str, target: Path, *, durable: bool = False) -> None:
    """Make `target`, which must not be there, a working copy of a snapshot. Links are made last, and none followed.

    RemoteError when it is not in the store; IntegrityError when a file of it was damaged there: that file is removed
    from the store, so that the next push sends it again. `durable`: every byte is on the disk afterwards.
    """
    store = Store(home)
    with locked(home, fcntl.LOCK_SH):
        entries = load(home, snapshot)
        if entries is None:
            raise RemoteError(
                "E-CODE-001", f"snapshot {snapshot} of the code is not on this pod", where=str(home.code_store),
                fix="launch again: it is sent then",
            )  # fmt: skip
        linked = sum(e.size for e in entries) > COPY_WHOLE_BYTES
        top = os.fspath(target)
        target.mkdir(0o700)
        for folder in folders(entries):
            Path(_below(top, folder)).mkdir(0o700)
        for entry in entries:
            if entry.kind != "l":
                _give(store, entry, _below(top, entry.path), linked=linked, durable=durable)
        for entry in entries:
            if entry.kind == "l":
                os.symlink(_local(entry.value), _below(top, entry.path))  # noqa: PTH211  the target as it is written


def _give(store: Store, entry: Entry, target: str, *, linked: bool, durable: bool) -> None:
    try:
        if linked and entry.size >= LINK_BYTES and entry.kind == "f":
            store.link(entry, target)
        else:
            store.copy(entry, target, durable=durable)
    except FileNotFoundError as e:
        raise IntegrityError(
            "E-CODE-003", "a file of the code was damaged or removed in the pod's store", where=entry.path,
            expected=f"sha256 {entry.value}", fix="launch again: the file is sent again then",
        ) from e  # fmt: skip


def _local(path: str) -> str:
    """A path of the wire as this machine's Python takes it, whatever its locale."""
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def _below(top: str, path: str) -> str:
    return f"{top}/{_local(path)}"


def look(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{id} -> {there}: whether the snapshot and every file of it lies here, unharmed."""
    with locked(home, fcntl.LOCK_SH):
        entries = load(home, want(args, "id", str))
        there = entries is not None and not _missing(Store(home), entries)
    return Answer({"there": there})


def offer(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
    """{id, base} and a manifest -> {missing, have, based}: which of its rows (by path) are to be sent.

    `base`: the id of a snapshot here from which the manifest tells the difference; {based: false} when there is none.
    `have`: {row: bytes} of large files that came in part. Nothing missing: the snapshot is made.
    """
    _ensure_home(home)
    ident, base = want(args, "id", str), args.get("base")
    with locked(home, fcntl.LOCK_SH):
        known = load(home, base) if isinstance(base, str) else ()
        if known is None:
            return Answer({"based": False, "missing": [], "have": {}})
        entries = unpack_manifest(data, known)
        if snapshot_id(entries) != ident:
            raise IntegrityError("E-CODE-004", "a snapshot's id is not that of its files", value=ident)
        store = Store(home)
        missing = _missing(store, entries)
        _refuse_full_disk(store, entries, missing)
        keep(home, ident, entries, whole=not missing)
    have = {str(i): n for i in missing if (n := store.arrived(entries[i].value))}
    return Answer({"based": True, "missing": missing, "have": have})


def blobs(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
    """{blobs: [[sha256, size]]} and their bytes, one behind the other -> {stored}"""
    store, at = Store(home), 0
    rows = want(args, "blobs", list)
    if sum(int(size) for _, size in rows) != len(data) or any(int(size) < 0 for _, size in rows):
        raise IntegrityError("E-CODE-010", "files arrived that are longer or shorter than they were called")
    for sha256, size in rows:
        if not store.has(str(sha256), int(size)):
            store.put(str(sha256), data[at : at + int(size)])
        at += int(size)
    return Answer({"stored": len(rows)})


def piece(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
    """{sha256, size, offset} and bytes of a large file -> {have}"""
    sha256, size, offset = want(args, "sha256", str), want(args, "size", int), want(args, "offset", int)
    return Answer({"have": Store(home).append(sha256, size, offset, data)})


def commit(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{id} -> {missing}: makes the snapshot when nothing is missing."""
    ident = want(args, "id", str)
    with locked(home, fcntl.LOCK_SH):
        entries = load(home, ident, offered=True)
        if entries is None:
            raise ConflictError("E-CODE-011", f"snapshot {ident} was never offered to this pod, or long ago")
        missing = _missing(Store(home), entries)
        keep(home, ident, entries, whole=not missing)
    return Answer({"missing": missing})


def tree(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{hash, id} -> {path}: orch's own tree of this hash, made of a snapshot."""
    digest = want(args, "hash", str)
    if not is_id(digest):
        raise RemoteError("E-CODE-007", "that is no hash", value=digest)
    _ensure_home(home)
    target = home.tree(digest)
    staged = home.trees / f"{STAGED_PREFIX}{digest}.{secrets.token_hex(4)}"
    if target.is_dir():
        return Answer({"path": str(target)})
    for left in home.trees.glob(f"{STAGED_PREFIX}*"):  # of one that was killed
        if time.time() - left.lstat().st_mtime > LEFTOVER_AGE_S:
            remove_tree(left)
    try:
        materialize(home, want(args, "id", str), staged, durable=True)
        if tree_hash(staged) != digest:
            raise IntegrityError("E-CODE-012", "orch's own files hash to something else on the pod", value=digest)
        with contextlib.suppress(OSError):  # somebody was faster, or the reason is told below
            staged.rename(target)
            fsync_dir(home.trees)
    finally:
        remove_tree(staged)
    if not target.is_dir():
        raise RemoteError("E-CODE-013", "orch's own files cannot be put in place", where=str(target))
    return Answer({"path": str(target)})


def gc(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{older_than_s, dry_run} -> {snapshots, objects, bytes}: remove what no launch used for that long.

    A run has its own copy of its code: nothing here is needed by one that exists.
    """
    dry = want(args, "dry_run", bool)
    now = time.time()
    limit = now - max(float(args.get("older_than_s", 0.0)), YOUNG_S)
    removed = {"snapshots": 0, "objects": 0, "bytes": 0}
    if not home.code_store.is_dir():
        return Answer(removed)
    with locked(home, fcntl.LOCK_EX):
        used: set[str] = set()
        for path in sorted([*home.code_store.glob("*.json"), *home.code_store.glob("*.offer")]):
            entries = read(path)
            young = path.stat().st_mtime >= (limit if path.suffix == ".json" else now - YOUNG_S)
            if entries is not None and young:
                used |= {e.value for e in entries}
                continue
            removed["snapshots"] += path.suffix == ".json"
            if not dry:
                path.unlink(missing_ok=True)
        for path, size in Store(home).unused(used, now - YOUNG_S):
            removed["objects"] += 1
            removed["bytes"] += size
            if not dry:
                path.unlink(missing_ok=True)
    return Answer(removed)


def _ensure_home(home: OrchHome) -> None:
    from pods.remote.stage import ensure_home  # which needs `materialize`

    ensure_home(home)


def _missing(store: Store, entries: Sequence[Entry]) -> list[int]:
    """Rows whose file is not here; one row for a file that has several names."""
    asked: dict[str, bool] = {}
    rows = []
    for i, entry in enumerate(entries):
        if entry.kind != "l" and entry.value not in asked:
            asked[entry.value] = store.has(entry.value, entry.size)
            if not asked[entry.value]:
                rows.append(i)
    return rows


def _refuse_full_disk(store: Store, entries: Sequence[Entry], missing: Sequence[int]) -> None:
    wanted = sum(entries[i].size for i in missing) + SPARE_BYTES
    free = store.free_bytes()
    if missing and free < wanted:
        raise _full(store.path, f"{free >> 20} MiB free", f"{wanted >> 20} MiB")


def _full(path: Path, value: str | None = None, expected: str | None = None) -> RemoteError:
    return RemoteError(
        "E-CODE-006", "too little free disk on the pod for the code", where=str(path), value=value, expected=expected,
        fix="free some space there: orch pods gc",
    )  # fmt: skip


def _told(operation: Operation) -> Operation:
    """A full disk in a person's words."""

    def carry_out(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
        try:
            return operation(home, args, data)
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(home.code_store, e.strerror) from e
            raise

    return carry_out


_ALL: tuple[Callable[[OrchHome, Mapping[str, Any], bytes], Answer], ...] = (
    look, offer, blobs, piece, commit, tree, gc,
)  # fmt: skip
OPERATIONS: Mapping[str, Operation] = {f.__name__: _told(f) for f in _ALL}
