"""One virtual shard of files that are read from their start: its files in a computed order, their rows as they stand.

The state is [epoch, unit, row, token, base, version, stream]: the row in which the next window begins and the token
there, and the state of `datasets` at row `base`, from which that row is read again. Called by `workloads.data.shards`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workloads.data.cursor import START, Cut, Piece, Windows
from workloads.data.rowfiles import Place, RowFiles, UnitReader


class FileCursor(Windows):
    """`window()` again and again; `state` in between. Not for several threads at once."""

    def __init__(self, source: RowFiles, cut: Cut, *, shard: int, shards: int, seed: int) -> None:
        self._files = source
        super().__init__(source, cut, shard=shard, shards=shards, seed=seed)

    def seek(self, state: Sequence[Any]) -> None:
        """Go on from a state. ValueError when it is none."""
        if tuple(state) == START:
            state = (*START, 0, "", None)
        if len(state) != 7 or any(type(n) is not int or n < 0 for n in state[:5]):
            raise ValueError(f"{list(state)!r:.80} is no position in files")
        epoch, unit, row, token, base, version, stream = state
        whole = isinstance(version, str) and (stream is None or isinstance(stream, Mapping))
        if not whole or base > row or unit >= max(1, self._blocks):
            raise ValueError(f"{list(state)!r:.80} is no position in a shard of {self._blocks} files")
        self._from = tuple(state)
        self._pieces = deque()
        self._first: tuple[int, UnitReader] | None = None
        self._source = self._from_place(epoch, unit, row, token, Place(base, version, stream))

    def want(self) -> None:
        """Begin to read what the next window begins in."""
        if self._pieces or self._first is not None:
            return
        number = self._number(self._from[0], self._from[1])
        self._first = (number, self._files.unit(number))
        self._first[1].ahead(Place(*self._from[4:]))

    def _from_place(self, epoch: int, unit: int, row: int, token: int, place: Place) -> Iterator[Piece]:
        barren = 0
        while True:
            for u in range(unit, self._blocks):
                for piece in self._unit(epoch, u, row, place):
                    barren, piece.used, token = 0, token, 0
                    yield piece
                place, row = Place(), 0
            unit, epoch, barren = 0, epoch + 1, barren + 1
            if barren > 1:
                raise self._no_documents()

    def _unit(self, epoch: int, unit: int, row: int, place: Place) -> Iterator[Piece]:
        """The documents of a unit from `row` on, which `place` is not behind."""
        number = self._number(epoch, unit)
        reader = self._first[1] if self._first and self._first[0] == number else self._files.unit(number)
        self._first = (-1, reader)
        while True:
            chunk = reader.chunk(place)
            for n, text in enumerate(chunk.texts):
                if n == len(chunk.texts) // 2 and not chunk.ended:
                    reader.ahead(chunk.after)
                at = place.row + n
                tokens = self._tokens(text, reader.file.name, at) if text and at >= row else None
                if tokens is not None:
                    yield Piece((epoch, unit, at, place.row, place.version, place.stream), tokens)
            if chunk.ended:
                return
            place = chunk.after
