"""From text to the tokens of a model and back: bytes, as our own training has them, or a published tokenizer.json.

No chat template is put around a prompt: what is to be said to a model is in the prompt. Called by
`workloads.decode.weights` (which one) and `workloads.decode.loop`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from workloads.contract.errors import LocalError, SpecError
from workloads.data.tokenizers import Tokenizer as Coder

BYTE_VOCAB = 256
TOKENIZER = "tokenizer.json"


class Tokenizer(Protocol):
    name: str

    def encode(self, text: str, *, first: bool) -> list[int]:
        """`first`: of its conversation; the tokens that open a text are put before that one alone."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8. A token that is no byte is shown as its number in <>, bytes that are no UTF-8 as U+FFFD."""

    name = "byte"

    def encode(self, text: str, *, first: bool) -> list[int]:
        del first
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, ids: Sequence[int]) -> str:
        raw = b"".join(bytes([i]) if i < BYTE_VOCAB else f"<{i}>".encode() for i in ids)
        return raw.decode("utf-8", "replace")


class TrainedTokenizer:
    """That of a run's data, when it is no bytes. Texts are encoded as its documents were: nothing opens them."""

    def __init__(self, inner: Coder) -> None:
        self.name, self._inner = inner.name, inner

    def encode(self, text: str, *, first: bool) -> list[int]:
        del first
        return [int(i) for i in self._inner.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        known = [i for i in ids if i < self._inner.vocab_size]  # the model may have more rows than there are tokens
        return self._inner.decode(known)


class PublishedTokenizer:
    """The tokenizer.json of a folder of weights, through the package `tokenizers`."""

    def __init__(self, inner: Any, name: str) -> None:
        self.name, self._inner = name, inner

    def encode(self, text: str, *, first: bool) -> list[int]:
        return [int(i) for i in self._inner.encode(text, add_special_tokens=first).ids]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


def published_tokenizer(folder: Path) -> PublishedTokenizer:
    """SpecError when the folder has none that can be read, LocalError when the package is not installed."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise SpecError(
            "E-DECODE-006", f"the weights have no {TOKENIZER}: their tokens cannot be told", where=str(folder),
            expected="config.json, *.safetensors and tokenizer.json", fix=f"put the model's {TOKENIZER} there",
        )  # fmt: skip
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError as e:
        raise LocalError(
            "E-DECODE-007", "tokenizers is not installed for this Python", where=sys.executable,
            fix=f"{sys.executable} -m pip install tokenizers safetensors",
        ) from e  # fmt: skip
    try:
        return PublishedTokenizer(Reader.from_file(str(path)), str(path))
    except Exception as e:  # the package raises bare Exceptions
        raise SpecError("E-DECODE-006", f"{TOKENIZER} cannot be read: {e}", where=str(path)) from e
