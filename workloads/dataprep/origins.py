"""Documents to prepare, in parts that are read independently of each other. No tokens here, and nothing is written.

The parts and their order are fixed by the source alone, never by the number of workers, so that any number of them
makes the same shards. A long file comes in pieces, so that memory stays bounded. Called by `workloads.dataprep.pool`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workloads.contract.config.job import STREAMS, DataSpec
from workloads.contract.errors import SpecError
from workloads.data.blocks import BlockSource
from workloads.data.files import unreadable
from workloads.data.hub import commit_of, is_folder
from workloads.data.opening import open_source, preload
from workloads.data.reading import BlockReader, Patience
from workloads.data.rowfiles import Place, RowFiles

PARTS = 64
MIN_PART_BYTES = 1 << 20
"""Files are dealt out in their order to at most so many parts, of whole files and, but for the last, this large."""
PIECE_CHARS = 4 << 20
MAX_PIECE_CHARS = 4 * PIECE_CHARS
READ_BYTES = 1 << 20
AHEAD = 4
"""blocks of a remote source that a worker has under way"""
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class Piece:
    """Text of a document; `last` of it. done: how much of the part was read once it is, in the origin's unit.

    An empty text that is not the last only tells how much was read.
    """

    text: str
    last: bool
    done: int


class Origin(Protocol):
    """`size`: of all parts together, in the unit of `Piece.done`; None: unknown until the end."""

    name: str
    fingerprint: str
    size: int | None

    @property
    def parts(self) -> int: ...

    def pieces(self, part: int) -> Iterator[Piece]:
        """The documents of a part. OrchError when they cannot be read."""
        ...


def open_origin(data: DataSpec) -> Origin:
    """The origin that a job's `data` names. OrchError (E-DATA-...) when there is none."""
    if data.source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [p for p in root.rglob("*.py") if not _NOT_STDLIB & set(p.relative_to(root).parts)]
        return FileOrigin("stdlib", root, sorted(found))
    if data.source == "text":
        path = Path(data.path or "").expanduser()
        return FileOrigin("text", path, files_below(path) if path.is_dir() else [path])
    if data.source in STREAMS:
        preload(data)
        source = open_source(data)
        return RowOrigin(source) if isinstance(source, RowFiles) else BlockOrigin(source, data)
    raise SpecError(
        "E-DATA-040", f"data.source {data.source} holds no documents that could be prepared", where="data.source",
        expected=f"stdlib, text, {', '.join(STREAMS)}", fix="orch data prepare --source text --path DIR --out DIR",
    )  # fmt: skip


def settled(data: DataSpec) -> DataSpec:
    """`data` with the commit of a hub's data set: what every worker reads. OrchError, SourceGone."""
    spec = data.dataset
    if data.source != "hub" or spec is None or is_folder(spec.repo):
        return data
    patience = Patience(data.read_timeout_s, data.read_tries)
    commit = patience.call(lambda: commit_of(spec, data.read_timeout_s), "hub", spec.repo)
    return data.model_copy(update={"dataset": spec.model_copy(update={"revision": commit})})


def files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


class FileOrigin:
    """A file is a document. Unit: bytes. What is no UTF-8 becomes U+FFFD."""

    def __init__(self, name: str, root: Path, files: Sequence[Path]) -> None:
        self.name, self.files = name, files
        self._parts: list[list[Path]] = [[]] if files else []
        digest, held = hashlib.sha256(), 0
        stats = [_stat(path) for path in files]
        self.size: int | None = sum(st.st_size for st in stats)
        enough = max(MIN_PART_BYTES, self.size // PARTS)
        for path, st in zip(files, stats, strict=True):
            if held >= enough:
                self._parts.append([])
                held = 0
            self._parts[-1].append(path)
            held += st.st_size
            told = [path.relative_to(root).as_posix() if path != root else path.name, st.st_size, st.st_mtime_ns]
            digest.update(json.dumps(told).encode() + b"\n")
        self.fingerprint = digest.hexdigest()

    @property
    def parts(self) -> int:
        return len(self._parts)

    def pieces(self, part: int) -> Iterator[Piece]:
        done = 0
        for path in self._parts[part]:
            for text, last, read in _read(path):
                done += read
                yield Piece(text, last, done)


class BlockOrigin:
    """JSON lines, Parquet or a hub's data set: a document a line or row. Unit: blocks. What is no text is left out."""

    def __init__(self, source: BlockSource, data: DataSpec) -> None:
        self._source = source
        self._reader = BlockReader(self._source, Patience(data.read_timeout_s, data.read_tries))
        self.name: str = data.source
        self.fingerprint = self._source.fingerprint
        self.size: int | None = self._source.blocks

    @property
    def parts(self) -> int:
        return min(PARTS, self._source.blocks)

    def pieces(self, part: int) -> Iterator[Piece]:
        """SourceGone when a block cannot be had."""
        blocks = self._source.blocks
        mine = range(part * blocks // self.parts, (part + 1) * blocks // self.parts)
        for block in mine:
            for ahead in range(block + 1, min(block + 1 + AHEAD, mine.stop)):
                self._reader.ahead(ahead)
            texts = [text for text in self._reader.get(block) if text]
            done = block - mine.start
            for text in texts:
                yield Piece(text, True, done)
            yield Piece("", False, done + 1)


class RowOrigin:
    """Files that are read from their start, by whole files. Unit: bytes, packed as they are."""

    def __init__(self, source: RowFiles) -> None:
        self._source, self.name, self.fingerprint = source, "hub", source.fingerprint
        self.size: int | None = sum(f.size for f in source.files)

    @property
    def parts(self) -> int:
        return min(PARTS, len(self._source.files))

    def pieces(self, part: int) -> Iterator[Piece]:
        """SourceGone when a file cannot be had."""
        count, done = len(self._source.files), 0
        for file in range(part * count // self.parts, (part + 1) * count // self.parts):
            reader, at, ended = self._source.whole(file), Place(), False
            while not ended:
                chunk = reader.chunk(at)
                at, ended = chunk.after, chunk.ended
                if not ended:
                    reader.ahead(at)
                read = reader.file.size if ended else min(reader.bytes_read, reader.file.size)
                for text in chunk.texts:
                    if text:
                        yield Piece(text, True, done)
                yield Piece("", False, done + read)
            done += reader.file.size


def _read(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(text, is it the end, bytes read for it), cut where a line ends between two that are not blank."""
    decoder, kept, read = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
    try:
        with path.open("rb") as f:
            while data := f.read(READ_BYTES):
                kept, read = kept + decoder.decode(data), read + len(data)
                while (at := cut_at(kept)) is not None:
                    yield kept[:at], False, read
                    kept, read = kept[at:], 0
        yield kept + decoder.decode(b"", final=True), True, read
    except OSError as e:
        raise unreadable(path, e) from e


def cut_at(text: str) -> int | None:
    """Where the first piece of `text` ends, None for one that is short enough.

    In front of a lone line break: GPT-2's pattern splits there anyway, so its tokens are those of the whole text. A
    text that has none for long is cut where it is.
    """
    if len(text) <= PIECE_CHARS:
        return None
    at = text.find("\n", PIECE_CHARS // 2)
    while at != -1 and (text[at - 1].isspace() or text[at + 1 : at + 2].strip() == ""):
        at = text.find("\n", at + 1)
    if at != -1:
        return at
    return PIECE_CHARS if len(text) > MAX_PIECE_CHARS else None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as e:
        raise unreadable(path, e) from e
