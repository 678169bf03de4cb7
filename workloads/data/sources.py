"""Sources of bytes: the Python standard library's own files, a text file or directory, or a seeded stream.

A source is read once a rank into memory, in a fixed order, cut at a stated size, and has a fingerprint: a corpus that
changed between two attempts is noticed instead of silently giving other batches. Documents are separated by one NUL
byte. No network. Called by `workloads.data.batches`.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from workloads.contract.config.job import DataSpec
from workloads.contract.errors import LocalError

MAX_STDLIB_BYTES = 32 << 20
MAX_TEXT_BYTES = 1 << 30
SYNTHETIC_BYTES = 1 << 20
SEPARATOR = b"\0"
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})

Tokens: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Corpus:
    tokens: Tokens
    name: str
    fingerprint: str


def load_corpus(data: DataSpec, seed: int) -> Corpus:
    """The whole corpus as byte tokens. LocalError (E-DATA-...) when there is none or too little."""
    if data.source == "synthetic":
        raw = np.random.default_rng(seed).integers(32, 127, SYNTHETIC_BYTES, dtype=np.uint8).tobytes()
    elif data.source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        raw = _join((p for p in sorted(root.rglob("*.py")) if _belongs(p.relative_to(root))), MAX_STDLIB_BYTES)
    else:
        raw = _join(_text_files(Path(data.path or "")), MAX_TEXT_BYTES)
    if len(raw) <= data.seq_len:
        raise LocalError(
            "E-DATA-002",
            f"the corpus has {len(raw)} bytes, one sample needs {data.seq_len + 1}",
            where=data.path or data.source,
            fix="give more text, or a smaller data.seq_len",
        )
    tokens = np.frombuffer(raw, dtype=np.uint8)
    return Corpus(tokens, data.source, hashlib.sha256(raw).hexdigest())


def _belongs(relative: Path) -> bool:
    return not _NOT_STDLIB & set(relative.parts)


def _text_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [path]


def _join(files: Iterable[Path], limit: int) -> bytes:
    """Documents one after the other, the last one cut so that `limit` holds."""
    parts, left = [], limit
    for path in files:
        if left <= 0:
            break
        try:
            with path.open("rb") as f:
                part = f.read(left) + SEPARATOR
        except OSError as e:
            raise LocalError("E-DATA-001", f"cannot read the corpus: {e.strerror}", where=str(path)) from e
        parts.append(part)
        left -= len(part)
    return b"".join(parts)[:limit]
