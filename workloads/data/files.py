"""Data files on the pod: one file, a directory, or a pattern; and a fingerprint of what they hold.

The fingerprint covers names (relative to what was given), sizes and, of each file, the first and last 64 KiB and
sixteen places between: a corpus that changed between two attempts is noticed without being read whole. Modification
times do not count: a copy is the same corpus. Opens files to read, and nothing else. Called by `workloads.data.feeds`.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from workloads.contract.errors import MissingDataError

EDGE_BYTES, PLACE_BYTES, PLACES = 64 << 10, 4 << 10, 16
_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class DataFile:
    """One file of a source, wherever it lies."""

    name: str
    """what people read, and what the fingerprint holds"""
    size: int
    open: Callable[[], BinaryIO]
    """a new, seekable reader; OSError when it cannot be had"""
    content: str = ""
    """the content's own hash when it is known without reading"""


def local_files(path: str, endings: Sequence[str]) -> list[DataFile]:
    """The files at `path` in a fixed order. MissingDataError (E-DATA-001, -003): none is there, or one is unreadable.

    endings: which files of a directory count (`.jsonl`). A file that is named outright counts whatever it is called.
    """
    root = Path(path).expanduser()
    try:
        if _PATTERN & set(path) and not root.exists():
            found, base = sorted(Path(p) for p in glob.glob(str(root), recursive=True)), _fixed_part(root)  # noqa: PTH207
            found = [p for p in found if p.is_file()]
        elif root.is_dir():
            found, base = _of_directory(root, endings), root
        else:
            found, base = [root], root.parent
        files = [_local(p, str(p.relative_to(base))) for p in found]
    except OSError as e:
        raise unreadable(Path(e.filename or path), e) from e
    if not any(f.size for f in files):
        others = f"; {len(files)} files there are empty" if files else _others(root)
        raise MissingDataError(
            "E-DATA-003", f"no data file is there{others}", where=path,
            expected=f"files that end in {', '.join(endings)}",
            fix="give the file, its directory or a quoted pattern such as 'corpus/*" + endings[0] + "' as data.path",
        )  # fmt: skip
    return files


def unreadable(path: Path, e: OSError) -> MissingDataError:
    """For data at `path` that cannot be read now: how far the way to them is there."""
    shown = shlex.quote(str(path))
    if e.errno not in (errno.ENOENT, errno.ENOTDIR):
        return MissingDataError(
            "E-DATA-001", f"cannot read the corpus: {e.strerror}", where=str(path), fix=f"ls -ld {shown}"
        )
    there = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    return MissingDataError(
        "E-DATA-001", "cannot read the corpus: the data are not there", where=str(path),
        expected=f"a file or folder; of the way to it {there} is there",
        fix=f"bring them back, or mount their disk again (ls {shlex.quote(str(there))}); then orch resume goes on",
    )  # fmt: skip


def fingerprint(files: Sequence[DataFile]) -> str:
    """sha256 over names, sizes and samples of the content. OSError when a file cannot be read."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{file.size}\0{file.content}\0".encode())
        if not file.content and file.size:
            with file.open() as f:
                for start, length in _places(file.size):
                    f.seek(start)
                    whole.update(f.read(length))
    return whole.hexdigest()


def _places(size: int) -> list[tuple[int, int]]:
    if size <= 2 * EDGE_BYTES:
        return [(0, size)]
    step = size // (PLACES + 1)
    return [(0, EDGE_BYTES), *((i * step, PLACE_BYTES) for i in range(1, PLACES + 1)), (size - EDGE_BYTES, EDGE_BYTES)]


def _local(path: Path, name: str) -> DataFile:
    if not os.access(path, os.R_OK):
        path.open("rb").close()  # says why
    return DataFile(name, path.stat().st_size, lambda: path.open("rb"))


def _of_directory(root: Path, endings: Sequence[str]) -> list[Path]:
    hidden = (p for p in root.rglob("*") if any(part.startswith(".") for part in p.relative_to(root).parts))
    skip = set(hidden)
    return sorted(p for p in root.rglob("*") if p not in skip and p.name.endswith(tuple(endings)) and p.is_file())


def _fixed_part(pattern: Path) -> Path:
    """The directory in front of a pattern's first wildcard."""
    parts: list[str] = []
    for part in pattern.parts:
        if _PATTERN & set(part):
            break
        parts.append(part)
    return Path(*parts)


def no_files_in(root: Path) -> MissingDataError:
    """A folder of text that holds none: a disk that is not mounted leaves one like that."""
    return MissingDataError(
        "E-DATA-003", "no data file is there; the directory is empty", where=str(root), expected="files of text",
        fix=f"bring them back, or mount their disk again (ls -la {shlex.quote(str(root))})",
    )  # fmt: skip


def _others(root: Path) -> str:
    if not root.is_dir():
        return ""
    names = sorted(p.name for p in root.iterdir())[:3]
    return f"; there is {', '.join(names)}" if names else "; the directory is empty"
