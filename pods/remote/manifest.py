"""What a snapshot of code is: files and links by path, its id, and what may be in one. Pure; used on both sides.

A path is relative, with `/`; bytes that are no UTF-8 are surrogates (PEP 383), which JSON carries. Kinds: `f` a file,
`x` an executable one, `l` a symbolic link. Empty directories are in none, as in git.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from workloads.contract.errors import RemoteError

MAX_FILE_BYTES = 100 << 20
MAX_TOTAL_BYTES = 1 << 30
MAX_FILES = 100_000
MAX_PATH_BYTES = 3000  # a pod puts its own directories in front, and Linux takes 4095
MAX_NAME_BYTES = 255
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{16}")


class Entry(NamedTuple):
    path: str
    kind: str  # f, x, l
    value: str  # sha256 of a file's bytes, target of a link
    size: int  # bytes of a file, 0 for a link


def as_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def ordered(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda e: as_bytes(e.path)))


def snapshot_id(entries: Sequence[Entry]) -> str:
    """16 hex digits over what is in it, whatever it is called and wherever it lies."""
    digest = hashlib.sha256()
    for e in ordered(entries):
        digest.update(b"%b\0%b\0%b\0" % (as_bytes(e.path), e.kind.encode(), as_bytes(e.value)))
    return digest.hexdigest()[:16]


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_sha256(text: object) -> bool:
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def fits(path: str) -> str | None:
    """Why a pod cannot have a file of this relative path; None when it can."""
    try:
        raw = as_bytes(path)
    except UnicodeEncodeError:
        return "its name is no text and no bytes"
    parts = raw.split(b"/")
    if raw.startswith(b"/") or any(p in (b"", b".", b"..") for p in parts):
        return "it is not a plain path below the directory"
    if b"\0" in raw:
        return "its name holds a NUL"
    if len(raw) > MAX_PATH_BYTES or any(len(p) > MAX_NAME_BYTES for p in parts):
        return "its name is too long"
    return None


def link_fits(path: str, target: str) -> str | None:
    """Why a link may not travel: it must be relative and, read from where it lies, point to a place in the tree."""
    try:
        raw = as_bytes(target)
    except UnicodeEncodeError:
        return "its target is no text and no bytes"
    if not raw or b"\0" in raw or len(raw) > MAX_PATH_BYTES:
        return "its target is no path"
    if raw.startswith(b"/"):
        return "it is an absolute link"
    depth = path.count("/")
    for part in raw.split(b"/"):
        depth += -1 if part == b".." else 0 if part in (b"", b".") else 1
        if depth < 0:
            return "it points out of the directory"
    return None


def to_rows(entries: Iterable[Entry]) -> list[list[Any]]:
    return [list(e) for e in entries]


def parse(rows: object) -> tuple[Entry, ...]:
    """The entries of a manifest from somebody else, in order. RemoteError for one that no pod should carry out."""
    if not isinstance(rows, list) or len(rows) > MAX_FILES:
        raise _bad(f"no list of at most {MAX_FILES} files", None)
    entries = ordered(_entry(row) for row in rows)
    total = sum(e.size for e in entries)
    if total > MAX_TOTAL_BYTES:
        raise _bad(f"more than {MAX_TOTAL_BYTES >> 20} MiB", total)
    leaves = {e.path for e in entries}
    if len(leaves) != len(entries):
        raise _bad("a path twice", None)
    for folder in folders(entries):
        if folder in leaves:
            raise _bad("something below a file or link", folder)
    return entries


def folders(entries: Iterable[Entry]) -> list[str]:
    """Every directory that is needed, parents first."""
    found: set[str] = set()
    for entry in entries:
        path = entry.path
        while (at := path.rfind("/")) > 0 and (path := path[:at]) not in found:
            found.add(path)
    return sorted(found, key=lambda p: (p.count("/"), p))


def _entry(row: object) -> Entry:
    if not isinstance(row, list) or len(row) != 4 or not all(isinstance(t, str) for t in row[:3]):
        raise _bad("a row that is none", row)
    entry = Entry(*row)
    problem = fits(entry.path)
    if problem is None and entry.kind == "l":
        problem = link_fits(entry.path, entry.value) or (None if entry.size == 0 else "a link with a size")
    elif problem is None:
        good = entry.kind in ("f", "x") and is_sha256(entry.value) and type(entry.size) is int
        problem = None if good and 0 <= entry.size <= MAX_FILE_BYTES else "a kind, hash or size that is none"
    if problem is not None:
        raise _bad(problem, entry.path)
    return entry


def _bad(what: str, value: object) -> RemoteError:
    return RemoteError("E-CODE-002", f"a snapshot is refused: {what}", value=value, expected="the same version of orch")


def pack_manifest(entries: Sequence[Entry], base: Mapping[str, Entry] | None = None) -> bytes:
    """The manifest, or what is different in it from `base` (by path)."""
    if base is None:
        return json.dumps({"rows": to_rows(entries)}, separators=(",", ":")).encode()
    rows = [list(e) for e in entries if base.get(e.path) != e]
    gone = sorted(base.keys() - {e.path for e in entries})
    return json.dumps({"rows": rows, "gone": gone}, separators=(",", ":")).encode()


def unpack_manifest(data: bytes, base: Sequence[Entry] = ()) -> tuple[Entry, ...]:
    """The inverse of `pack_manifest`, checked."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise _bad("no JSON", None) from e
    rows = message.get("rows") if isinstance(message, dict) else None
    if not base or not isinstance(rows, list):
        return parse(rows)
    gone = message.get("gone")
    kept = {e.path: list(e) for e in base}
    for path in gone if isinstance(gone, list) else ():
        kept.pop(str(path), None)
    for row in rows:
        if isinstance(row, list) and row and isinstance(row[0], str):
            kept[row[0]] = row
        else:
            raise _bad("a row that is none", row)
    return parse(list(kept.values()))
