"""One virtual shard: its documents in their order, for ever, cut into windows of T + 1 tokens.

Each epoch of a shard visits its blocks, and the documents in each block, by a new permutation of numbers; nothing is
shuffled in memory. Windows overlap by one token, as those of a corpus do. The state names the document in which the
next window begins and the token there: [epoch, block, document, token], places in the orders of that epoch. So a
resume reads one block and no more, and nothing has to be kept. `workloads.data.filecursor` has another way to find
documents. Called by `workloads.data.shards`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workloads.contract.errors import SpecError
from workloads.data.blocks import TextSource
from workloads.data.order import Permutation
from workloads.data.reading import BlockReader
from workloads.data.stream import Tokens
from workloads.data.tokenizers import Tokenizer, token_dtype

START = (0, 0, 0, 0)


@dataclass(frozen=True)
class Cut:
    """How documents become samples."""

    seq_len: int
    tokenizer: Tokenizer
    truncate: bool
    """only the first seq_len - 1 tokens of a document, and its end token"""


@dataclass
class Piece:
    """A document's tokens with its end token; `used` of them lie before the next window."""

    place: tuple[Any, ...]
    """the first three of the state, and what comes behind its token"""
    tokens: Tokens
    used: int = 0


class Windows(ABC):
    """Cuts one shard's documents into windows. `window()` again and again; `state` in between.

    Whoever derives from it says how documents are found (`_source`) and entered (`seek`).
    """

    _from: tuple[Any, ...]
    _pieces: deque[Piece]
    _source: Iterator[Piece]

    def __init__(self, source: TextSource, cut: Cut, *, shard: int, shards: int, seed: int) -> None:
        self._texts, self._cut = source, cut
        self._shard, self._shards, self._seed = shard, shards, seed
        self._blocks = len(range(shard, source.blocks, shards))
        self._dtype = token_dtype(cut.tokenizer.vocab_size)
        self._end = np.array([cut.tokenizer.end_id], self._dtype)
        self.seek(START)

    @abstractmethod
    def seek(self, state: Sequence[Any]) -> None:
        """Go on from a state. ValueError when it is none."""

    @abstractmethod
    def want(self) -> None:
        """Begin to read what the next window begins in."""

    @property
    def state(self) -> list[Any]:
        if not self._pieces:
            return list(self._from)
        first = self._pieces[0]
        return [*first.place[:3], first.used, *first.place[3:]]

    def window(self) -> tuple[Tokens, list[int]]:
        """T + 1 tokens, and where documents begin in the first T. SpecError when the shard has no documents."""
        length = self._cut.seq_len
        have = sum(len(p.tokens) - p.used for p in self._pieces)
        while have < length + 1:
            piece = next(self._source)
            self._pieces.append(piece)
            have += len(piece.tokens) - piece.used
        parts, starts, at = [], [], 0
        for piece in self._pieces:
            if piece.used == 0 and at < length:
                starts.append(at)
            parts.append(piece.tokens[piece.used : piece.used + length + 1 - at])
            at += len(parts[-1])
        self._advance(length)
        return np.concatenate(parts), starts

    def _advance(self, count: int) -> None:
        while count:
            first = self._pieces[0]
            step = min(count, len(first.tokens) - first.used)
            first.used, count = first.used + step, count - step
            if first.used == len(first.tokens):
                self._pieces.popleft()  # one token more was read, so a later piece is there

    def _number(self, epoch: int, block: int) -> int:
        """The source's number of the block at a place of the epoch's order."""
        return self._shard + self._shards * self._order(self._blocks, "blocks", epoch, self._shard)(block)

    def _order(self, count: int, what: str, epoch: int, of: int) -> Permutation:
        key = hashlib.blake2b(f"{self._seed} {what} {of}".encode(), digest_size=8).digest()
        return Permutation(max(1, count), int.from_bytes(key, "big"), epoch)

    def _tokens(self, text: str, where: str, place: int) -> Tokens | None:
        """None, and told, when the tokenizer cannot take it."""
        try:
            ids = self._cut.tokenizer.encode(text)
        except ValueError as e:
            self._texts.left_out.note(where, place, str(e), lambda: f"{where}, document {place + 1}")
            return None
        if self._cut.truncate:
            ids = ids[: self._cut.seq_len - 1]
        return np.concatenate([ids.astype(self._dtype, copy=False), self._end])

    def _no_documents(self) -> SpecError:
        return SpecError(
            "E-DATA-006", f"virtual shard {self._shard} of {self._shards} has no documents",
            where=self._texts.name, value=self._shards,
            fix="give more text, or a smaller data.shards (the ranks must divide it)",
        )  # fmt: skip


class Cursor(Windows):
    """A shard of blocks. Not for several threads at once."""

    def __init__(self, reader: BlockReader, cut: Cut, *, shard: int, shards: int, seed: int) -> None:
        self._reader = reader
        self._loaded: tuple[int, int] | None = None
        self._documents: Sequence[str | None] = ()
        super().__init__(reader.source, cut, shard=shard, shards=shards, seed=seed)

    def seek(self, state: Sequence[Any]) -> None:
        """Go on from a state. ValueError when it is none."""
        if len(state) != 4 or any(type(n) is not int or n < 0 for n in state) or state[1] >= max(1, self._blocks):
            raise ValueError(f"{list(state)!r:.80} is no position in a shard of {self._blocks} blocks")
        epoch, block, document, token = state
        self._from = (epoch, block, document, token)
        self._pieces = deque()
        self._source = self._from_place(epoch, block, document, token)

    def want(self) -> None:
        """Begin to read what the next window begins in."""
        if self._loaded is None:
            self._reader.ahead(self._number(self._from[0], self._from[1]))

    def _from_place(self, epoch: int, block: int, document: int, token: int) -> Iterator[Piece]:
        barren = 0
        while True:
            for b in range(block, self._blocks):
                texts, where = self._load(epoch, b), self._texts.where(self._number(epoch, b))
                order = self._order(len(texts), "documents", epoch, self._number(epoch, b))
                for d in range(document, len(texts)):
                    if d == len(texts) // 2:  # later would be too late for a remote one, sooner fills the memory
                        self._reader.ahead(self._following(epoch, b))
                    text = texts[order(d)]
                    tokens = self._tokens(text, where, order(d)) if text else None
                    if tokens is not None:
                        barren = 0
                        yield Piece((epoch, b, d), tokens, token)
                        token = 0
                document = 0
            block, epoch, barren = 0, epoch + 1, barren + 1
            if barren > 1:
                raise self._no_documents()

    def _load(self, epoch: int, block: int) -> Sequence[str | None]:
        number = self._number(epoch, block)
        if self._loaded != (epoch, block):
            self._documents = self._reader.get(number)
            self._loaded = (epoch, block)
        return self._documents

    def _following(self, epoch: int, block: int) -> int:
        last = block + 1 == self._blocks
        return self._number(epoch + 1, 0) if last else self._number(epoch, block + 1)
