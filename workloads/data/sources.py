"""Corpora that lie in memory: the Python standard library's own files, a text file or directory, a seeded stream.

A source is read once a rank into memory, in a fixed order, cut at a stated size, and has a fingerprint: a corpus that
changed between two attempts is noticed instead of silently giving other batches. Every document is followed by the
tokenizer's end token, which is one NUL byte where tokens are bytes. No network. Called by `workloads.data.feeds`.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from workloads.contract.config.job import DataSpec
from workloads.contract.errors import LocalError
from workloads.data.files import no_files_in, unreadable
from workloads.data.stream import Tokens
from workloads.data.tokenizers import BYTE, bind, load_tokenizer, token_dtype

MAX_STDLIB_BYTES = 32 << 20
MAX_TEXT_BYTES = 1 << 30
MAX_ENCODED_BYTES = 256 << 20
"""Text that is encoded anew at every start, by a tokenizer that takes its time."""
SYNTHETIC_BYTES = 1 << 20
SEPARATOR = b"\0"
EMPTY, BEYOND = "empty", "beyond what is kept in memory"
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    tokens: Tokens
    name: str
    fingerprint: str
    vocab: int = 256
    end_id: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    """files that are not used, by reason"""


def load_corpus(data: DataSpec, seed: int) -> Corpus:
    """The whole corpus. LocalError (E-DATA-...) when there is none, too little, or too much for its tokenizer."""
    left_out: dict[str, int] = {}
    if data.source == "synthetic":
        raw = np.random.default_rng(seed).integers(32, 127, SYNTHETIC_BYTES, dtype=np.uint8).tobytes()
        documents: Iterator[bytes] = iter([raw])
    elif data.source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        files = (p for p in sorted(root.rglob("*.py")) if _belongs(p.relative_to(root)))
        documents = _documents(files, MAX_STDLIB_BYTES, left_out)
    else:
        documents = _documents(_text_files(Path(data.path or "")), MAX_TEXT_BYTES, left_out)
    corpus = _of_bytes(data.source, documents) if data.tokenizer == BYTE else _encoded(data, documents)
    corpus = replace(corpus, left_out=left_out)
    if BEYOND in left_out:
        print(
            f"warning: data: {data.source}: {left_out[BEYOND]} files, or the end of one, are {BEYOND}: the corpus ends "
            f"after {len(corpus.tokens)} tokens (orch data prepare takes all of it)", file=sys.stderr, flush=True,
        )  # fmt: skip
    if len(corpus.tokens) <= data.seq_len:
        raise LocalError(
            "E-DATA-002",
            f"the corpus has {len(corpus.tokens)} tokens, one sample needs {data.seq_len + 1}",
            where=data.path or data.source,
            fix="give more text, or a smaller data.seq_len",
        )
    return corpus


def _of_bytes(name: str, documents: Iterator[bytes]) -> Corpus:
    raw = b"".join(documents)
    return Corpus(np.frombuffer(raw, dtype=np.uint8), name, hashlib.sha256(raw).hexdigest())


def _encoded(data: DataSpec, documents: Iterator[bytes]) -> Corpus:
    tokenizer = load_tokenizer(data.tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.end_id], dtype)
    digest, parts, size, damaged = hashlib.sha256(), [np.empty(0, dtype)], 0, 0
    for document in documents:
        raw = document.removesuffix(SEPARATOR)
        digest.update(document)
        size += len(document)
        if size > MAX_ENCODED_BYTES:
            raise LocalError(
                "E-DATA-009", f"more than {MAX_ENCODED_BYTES >> 20} MiB of text would be encoded at every start",
                where=data.path or data.source, fix="orch data prepare   (once, and then data.source: prepared)",
            )  # fmt: skip
        text = raw.decode(errors="replace")
        damaged += "\ufffd" in text and not _is_utf8(raw)
        parts += [tokenizer.encode(text).astype(dtype, copy=False), end]
    if damaged:
        print(
            f"warning: data: {data.source}: {damaged} files are no UTF-8; U+FFFD stands for what is not",
            file=sys.stderr,
        )
    fingerprint = bind(digest.hexdigest(), tokenizer)
    return Corpus(np.concatenate(parts), data.source, fingerprint, tokenizer.vocab_size, tokenizer.end_id)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _belongs(relative: Path) -> bool:
    return not _NOT_STDLIB & set(relative.parts)


def _text_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not found:
        raise no_files_in(path)
    return found


def _documents(files: Iterable[Path], limit: int, left_out: dict[str, int]) -> Iterator[bytes]:
    """Documents one after the other with their separators, the last one cut so that `limit` holds.

    `left_out`: filled with why files are not used, or not whole.
    """
    left = limit
    for path in files:
        if left <= 0:
            left_out[BEYOND] = left_out.get(BEYOND, 0) + 1
            continue
        try:
            with path.open("rb") as f:
                part = (f.read(left) + SEPARATOR)[:left]
                cut = len(part) == left and f.read(1) != b""
        except OSError as e:
            raise unreadable(path, e) from e
        if cut:
            left_out[BEYOND] = 1
        elif part == SEPARATOR:
            left_out[EMPTY] = left_out.get(EMPTY, 0) + 1
        yield part
        left -= len(part)
