"""What a pod says lies below a directory, checked: no name of it can leave the directory it is put into. Pure.

Called by `orchestrator.inventory.transfer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workloads.contract.errors import IntegrityError, escape

MAX_ENTRIES = 100_500
MAX_NAME_CHARS = 4000
MAX_DEPTH = 128
MAX_SIZE_BYTES = 1 << 60
KINDS = ("file", "dir", "link", "other")
_WHY_LEFT = {"link": "a link", "other": "no regular file"}


@dataclass(frozen=True)
class Entry:
    name: str
    """relative, parts joined by `/`"""
    kind: str
    size: int
    mode: int


@dataclass
class Listing:
    """`entries` may be made here. `left_out` and `odd`: names (escaped) and why."""

    kind: str
    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


def entries_of(fields: Mapping[str, Any], where: str) -> Listing:
    """The answer of `files.list`. IntegrityError for one that no honest file system gives."""
    kind, rows = fields.get("kind"), fields.get("entries")
    if kind not in KINDS or not isinstance(rows, list) or len(rows) > MAX_ENTRIES:
        raise _lie(where, "it is no list of files", None)
    listing = Listing(str(kind))
    kinds: dict[str, str] = {}
    for row in rows:
        entry = _entry(row, where)
        if entry.name in kinds:
            raise _lie(where, "it names a file twice", entry.name)
        kinds[entry.name] = entry.kind
        if entry.kind in _WHY_LEFT:
            listing.left_out.append((escape(entry.name), _WHY_LEFT[entry.kind]))
        elif entry.name.startswith("base64:") or not entry.name.isprintable():
            listing.odd.append((escape(entry.name), "a name that is no plain text"))
        else:
            listing.entries.append(entry)
    for name in kinds:
        if any(kinds.get(above, "dir") != "dir" for above in _above(name)):
            raise _lie(where, "it names something below a thing that is no directory", name)
    return listing


def _above(name: str) -> list[str]:
    return [name[:i] for i, char in enumerate(name) if char == "/"]


def _entry(row: object, where: str) -> Entry:
    if not isinstance(row, list) or len(row) != 4:
        raise _lie(where, "an entry has another shape", str(row)[:80])
    name, kind, size, mode = row
    if not isinstance(name, str) or kind not in KINDS or type(size) is not int or type(mode) is not int:
        raise _lie(where, "an entry has another shape", str(row)[:80])
    parts = name.split("/")
    if len(name) > MAX_NAME_CHARS or len(parts) > MAX_DEPTH or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise _lie(where, "a name leads out of it", name)
    if any(len(p.encode(errors="surrogatepass")) > 255 for p in parts) and not name.startswith("base64:"):
        raise _lie(where, "a name is too long", name)
    if not 0 <= size <= MAX_SIZE_BYTES:
        raise _lie(where, "a size is impossible", f"{name}: {size}")
    return Entry(name, str(kind), size, mode & 0o777)


def _lie(where: str, what: str, value: str | None) -> IntegrityError:
    return IntegrityError(
        "E-PODS-061", f"what the pod says lies there cannot be true: {what}; nothing was fetched", where=where,
        value=value, fix="look there yourself: orch pods ssh NAME; do not trust this pod",
    )  # fmt: skip
