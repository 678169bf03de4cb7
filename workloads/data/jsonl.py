"""JSON lines as blocks: byte ranges of files, each with the lines that begin in it.

No index is made and no file is read through: a block finds its first line by the newline before it. A line that is no
JSON object, has no text or is no UTF-8 is left out and told by file and line; blank lines are none. Called by
`workloads.data.opening`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import BinaryIO

from workloads.data.asked import Once, at_once
from workloads.data.blocks import LeftOut
from workloads.data.files import DataFile, fingerprint
from workloads.data.reading import Patience

ENDINGS = (".jsonl", ".ndjson", ".json")
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 512, 1 << 20
BLOCKS_A_SHARD = 8
MAX_LINE_BYTES = 64 << 20
COUNT_BYTES = 256 << 20
"""how far a file is read through to say a line's number; beyond it the byte is said"""
_CHUNK = 1 << 20
_ENDS = (".gz", ".zst", ".bz2", ".xz")
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")


class JsonLines:
    """A `BlockSource`. SourceGone when a file cannot be read; ValueError when one is compressed."""

    def __init__(
        self, name: str, files: Sequence[DataFile], *, text_field: str, shards: int, patience: Patience, ahead: int = 1,
        once: Once = at_once,
    ) -> None:  # fmt: skip
        self.name, self.ahead, self.left_out = name, ahead, LeftOut(name)
        self._files, self._field = [f for f in files if f.size], text_field
        packed = [f.name for f in self._files if f.name.endswith(_ENDS)]

        def look() -> bool:
            return any(patience.call(partial(_is_compressed, f), name, f.name) for f in self._files[:1])

        compressed: bool = bool(packed) or once(look, bool)
        if compressed:
            first = packed[0] if packed else self._files[0].name
            raise ValueError(f"{first} is compressed, and no place in it can be entered: decompress it first")
        self.fingerprint = patience.call(partial(fingerprint, files), name, "the first look at its files")
        total = sum(f.size for f in self._files)
        self._block_bytes = min(MAX_BLOCK_BYTES, max(MIN_BLOCK_BYTES, total // (shards * BLOCKS_A_SHARD)))
        self._ends = list(accumulate(-(-f.size // self._block_bytes) for f in self._files))
        self.blocks = self._ends[-1] if self._ends else 0

    def where(self, block: int) -> str:
        file, start, _ = self._range(block)
        return f"{file.name} at byte {start}"

    def read(self, block: int) -> Sequence[str | None]:
        """Blank lines are None too. OSError when the file is shorter than it was."""
        file, start, end = self._range(block)
        with file.open() as f:
            begin, raw = _lines(f, start, end)
        return [self._document(file, at, line) for at, line in _split(begin, raw)]

    def _range(self, block: int) -> tuple[DataFile, int, int]:
        n = bisect_right(self._ends, block)
        file = self._files[n]
        start = (block - (self._ends[n - 1] if n else 0)) * self._block_bytes
        return file, start, min(file.size, start + self._block_bytes)

    def _document(self, file: DataFile, at: int, line: bytes) -> str | None:
        if not line.strip():
            return None
        text, why = _text(line, self._field)
        if why:
            torn = " (the file ends inside it)" if at + len(line) == file.size and why.startswith("no JSON") else ""
            self.left_out.note(file.name, at, why + torn, partial(_line_name, file, at))
        return text


def _text(line: bytes, field: str) -> tuple[str | None, str]:
    """(the document, "") or (None, why there is none)."""
    if len(line) > MAX_LINE_BYTES:
        return None, f"longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        row = json.loads(line)
    except UnicodeDecodeError as e:
        return None, f"no UTF-8: {e.reason} at byte {e.start} of the line"
    except (ValueError, RecursionError) as e:
        return None, f"no JSON: {str(e)[:80]}"
    if not isinstance(row, dict):
        return None, f"no JSON object but {type(row).__name__}"
    if field not in row:
        return None, f"no field {field!r}, but {', '.join(row)[:80] or 'none'}"
    text = row[field]
    if not isinstance(text, str):
        return None, f"{field!r} is no text but {type(text).__name__}"
    return (text, "") if text else (None, f"{field!r} is empty")


def _lines(f: BinaryIO, start: int, end: int) -> tuple[int, bytes]:
    """(offset of the first line that begins in [start, end), all lines that do, the last one whole)."""
    before = 1 if start else 0
    f.seek(start - before)
    raw = f.read(end - start + before)
    if len(raw) < end - start + before:
        raise OSError(f"the file ends at byte {start - before + len(raw)}, before byte {end}: it was cut")
    if before:
        newline = raw.find(b"\n")
        if newline < 0 or newline == len(raw) - 1:
            return end, b""
        raw, start = raw[newline + 1 :], start + newline
    parts = [raw]
    length = len(raw)
    while not parts[-1].endswith(b"\n") and length <= MAX_LINE_BYTES + (end - start):
        more = f.read(_CHUNK)
        if not more:
            break
        newline = more.find(b"\n")
        parts.append(more if newline < 0 else more[: newline + 1])
        length += len(parts[-1])
    return start, b"".join(parts)


def _split(begin: int, raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its newline). Only newlines end lines: JSON may hold others raw."""
    place = 0
    while place < len(raw):
        newline = raw.find(b"\n", place)
        stop = len(raw) if newline < 0 else newline + 1
        yield begin + place, raw[place:stop]
        place = stop


def _line_name(file: DataFile, at: int) -> str:
    if at > COUNT_BYTES:
        return f"{file.name} at byte {at}"
    count, left = 1, at
    with file.open() as f:
        while left and (chunk := f.read(min(_CHUNK, left))):
            count, left = count + chunk.count(b"\n"), left - len(chunk)
    return f"{file.name}:{count}"


def _is_compressed(file: DataFile) -> bool:
    with file.open() as f:
        return f.read(6).startswith(_COMPRESSED)
