"""From documents to tokens and back: bytes, GPT-2's BPE, or any tokenizer.json.

A document's text is plain text: what looks like a special token in it is encoded as the characters that it is. Texts
are never normalised or cut here. No network of its own (`workloads.data.vocabulary`). Called by the sources, by
`orch data prepare`, and by the trainer, which binds the fingerprint to its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from workloads.contract import gptvocab
from workloads.contract.errors import LocalError, SpecError
from workloads.contract.rundir import OrchHome
from workloads.data.vocabulary import gpt2_ranks

TokenDtype: TypeAlias = "np.dtype[np.unsignedinteger[Any]]"
Ids: TypeAlias = NDArray[np.unsignedinteger[Any]]
BYTE, GPT2 = "byte", gptvocab.NAME
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]", "[EOS]")
"""What ends a document in a tokenizer.json, the first of them that it has."""
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's, in the form that needs no backtracking but after white space (tiktoken's r50k)."""
_LONG_BLANK = re.compile(r"\s{262144}")
"""tiktoken gives up on a million white characters in a row: longer runs are encoded in parts of so many."""


class Tokenizer(Protocol):
    name: str
    vocab_size: int
    """ids are below it"""
    end_id: int
    """stands behind every document"""
    fingerprint: str
    """sha256 over all that determines the ids"""

    def encode(self, text: str) -> Ids:
        """Without the end token. ValueError when the text cannot be encoded."""
        ...

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Bytes that are no UTF-8 as U+FFFD. KeyError or OverflowError for ids that there are not."""
        ...


def load_tokenizer(name: str) -> Tokenizer:
    """`byte`, `gpt2`, or the path of a tokenizer.json on this pod. OrchError (E-DATA-02x) when it cannot be had."""
    if name == BYTE:
        return ByteTokenizer()
    if name == GPT2:
        ranks = gpt2_ranks(OrchHome.from_env())
        return RankedTokenizer(GPT2, ranks, _PATTERN, gptvocab.END_ID)
    return read_tokenizer(Path(name).expanduser())


def fingerprint_of(name: str) -> str:
    """That of `load_tokenizer(name)`, without the vocabulary of one whose name settles it."""
    if name == GPT2:
        return _ranked(gptvocab.SHA256, _PATTERN, gptvocab.END_ID)
    return load_tokenizer(name).fingerprint


def _ranked(ranks: str, pattern: str, end_id: int) -> str:
    about = {"pattern": pattern, "ranks": ranks, "end": end_id}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def token_dtype(vocab_size: int) -> TokenDtype:
    """The smallest unsigned type that holds every id."""
    if vocab_size <= 1 << 8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16) if vocab_size <= 1 << 16 else np.dtype(np.uint32)


def bind(fingerprint: str, tokenizer: Tokenizer) -> str:
    """A corpus' fingerprint once it is tokenized. Bytes leave it as it is: so are those of older checkpoints."""
    if tokenizer.name == BYTE:
        return fingerprint
    return hashlib.sha256(f"{fingerprint}\0{tokenizer.fingerprint}".encode()).hexdigest()


def sound(text: str) -> str:
    """`text` with half surrogates, which JSON can carry and UTF-8 cannot, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class ByteTokenizer:
    """UTF-8; a NUL ends a document."""

    name, vocab_size, end_id = BYTE, 256, 0
    fingerprint = hashlib.sha256(b"byte\x001").hexdigest()

    def encode(self, text: str) -> Ids:
        return np.frombuffer(sound(text).encode(), dtype=np.uint8)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return np.asarray(ids, dtype=np.uint8).tobytes().decode("utf-8", "replace")


class RankedTokenizer:
    """Byte-level BPE by ranks, through tiktoken. Releases the GIL while it encodes."""

    def __init__(self, name: str, ranks: Mapping[bytes, int], pattern: str, end_id: int) -> None:
        try:
            from tiktoken import Encoding
        except ImportError as e:
            raise _not_installed("tiktoken") from e
        self.name, self.end_id, self.vocab_size = name, end_id, max(end_id, *ranks.values()) + 1
        self.fingerprint = _ranked(hashlib.sha256(gptvocab.canonical(ranks)).hexdigest(), pattern, end_id)
        special = {"<|endoftext|>": end_id}
        self._inner = Encoding(name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=special)
        self._dtype = token_dtype(self.vocab_size)

    def encode(self, text: str) -> Ids:
        parts = [self._part(part) for part in _without_long_blanks(sound(text))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _part(self, text: str) -> Ids:
        try:
            ids = self._inner.encode_to_numpy(text, disallowed_special=())
        except BaseException as e:  # a panic of its Rust code is no Exception and would end a thread unheard
            if type(e).__name__ != "PanicException":
                raise
            raise ValueError(f"tiktoken cannot encode this document of {len(text)} characters: {e}") from e
        return ids.astype(self._dtype)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return self._inner.decode([int(i) for i in ids])


class FileTokenizer:
    """A tokenizer.json, through the package `tokenizers`. Its own truncation and padding are switched off."""

    def __init__(self, inner: Any, name: str, data: bytes) -> None:
        self.name, self._inner = name, inner
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # as plain text
        vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        end = next((n for n in END_NAMES if n in vocabulary), None)
        if end is None:
            raise SpecError(
                "E-DATA-025", "no token of this tokenizer ends a document", where=name, expected=", ".join(END_NAMES),
                fix="add one of them to added_tokens in the file",
            )  # fmt: skip
        self.end_id, self.vocab_size = vocabulary[end], max(vocabulary.values()) + 1
        self.fingerprint = hashlib.sha256(data + b"\0" + end.encode()).hexdigest()
        self._dtype = token_dtype(self.vocab_size)

    def encode(self, text: str) -> Ids:
        return np.array(self._inner.encode(sound(text), add_special_tokens=False).ids, dtype=self._dtype)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return str(self._inner.decode([int(i) for i in ids], skip_special_tokens=False))


def read_tokenizer(path: Path) -> FileTokenizer:
    """SpecError when the file is none or there is none, LocalError when the package is not installed."""
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError as e:
        raise _not_installed("tokenizers") from e
    try:
        data = path.read_bytes()
        inner = Reader.from_str(data.decode())
    except OSError as e:
        raise SpecError(
            "E-DATA-024", f"the tokenizer cannot be read: {e.strerror}", where=str(path),
            expected="byte, gpt2, or the path of a tokenizer.json on the pod",
            fix="put the file on the pod and give its absolute path as data.tokenizer",
        ) from e  # fmt: skip
    except Exception as e:  # the package raises bare Exceptions
        raise SpecError(
            "E-DATA-024", f"this is no tokenizer.json: {e}", where=str(path), fix="data.tokenizer: gpt2"
        ) from e
    return FileTokenizer(inner, str(path), data)


def _without_long_blanks(text: str) -> list[str]:
    parts, start = [], 0
    for run in _LONG_BLANK.finditer(text):
        parts.append(text[start : run.end()])
        start = run.end()
    return [*parts, text[start:]]


def _not_installed(package: str) -> LocalError:
    return LocalError(
        "E-DATA-026", f"{package} is not installed for this Python", where=sys.executable,
        fix=f"{sys.executable} -m pip install {package}",
    )  # fmt: skip
