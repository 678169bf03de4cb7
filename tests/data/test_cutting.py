"""How documents become windows, held to a plain account of it: for any documents, lengths, shards and places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.data.blocks import LeftOut
from workloads.data.cursor import Cursor, Cut
from workloads.data.order import Permutation
from workloads.data.reading import BlockReader, Patience
from workloads.data.tokenizers import ByteTokenizer

TEXT = st.text("abcdefghijk", max_size=30)


class Lists:
    """A `BlockSource` of lists in memory."""

    name, fingerprint, ahead = "lists", "x", 1

    def __init__(self, blocks: Sequence[Sequence[str | None]]) -> None:
        self._all, self.blocks, self.left_out = blocks, len(blocks), LeftOut("lists")

    def read(self, block: int) -> Sequence[str | None]:
        return self._all[block]

    def where(self, block: int) -> str:
        return f"list {block}"


@given(
    blocks=st.lists(st.lists(st.none() | TEXT, max_size=6), min_size=3, max_size=9).filter(
        lambda bs: all(any(t for b in bs[v::3] for t in b) for v in range(3))
    ),
    seq_len=st.integers(2, 24),
    seed=st.integers(0, 2**40),
    shard=st.integers(0, 2),
    truncate=st.booleans(),
    windows=st.integers(1, 30),
    entered=st.integers(0, 29),
)
@settings(max_examples=60, deadline=None)
def test_windows_are_the_documents_one_behind_the_other(
    blocks: list[list[str | None]], seq_len: int, seed: int, shard: int, truncate: bool, windows: int, entered: int
) -> None:
    reader = BlockReader(Lists(blocks), Patience(30.0, 1))
    cut = Cut(seq_len, ByteTokenizer(), truncate)

    def cursor() -> Cursor:
        return Cursor(reader, cut, shard=shard, shards=3, seed=seed)

    one, states, rows, begins = cursor(), [], [], []
    for _ in range(windows):
        states.append(one.state)
        row, starts = one.window()
        rows.append(row)
        begins.append(starts)
    assert all(len(row) == seq_len + 1 for row in rows)
    stream = np.concatenate([row[:seq_len] for row in rows]).tobytes()
    assert [row[-1] for row in rows[:-1]] == [row[0] for row in rows[1:]]

    # entered at any place, the rest is the same
    other = cursor()
    other.seek(states[entered % windows])
    for n in range(entered % windows, windows):
        row, starts = other.window()
        assert np.array_equal(row, rows[n]) and starts == begins[n]

    # whole documents, each epoch all of the shard's own, once
    limit = seq_len - 1 if truncate else None
    own = sorted(t[:limit] for b in blocks[shard::3] for t in b if t)
    found = [d.decode() for d in stream.split(b"\0")[:-1]]
    for start in range(0, len(found), len(own)):
        epoch = sorted(found[start : start + len(own)])
        assert epoch == own if len(epoch) == len(own) else not (set(epoch) - set(own))
    marked = [n * seq_len + at for n, starts in enumerate(begins) for at in starts]
    assert marked == [i for i in range(len(stream)) if i == 0 or stream[i - 1] == 0]


@given(n=st.integers(1, 1100), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000), place=st.integers(0, 1099))
@settings(max_examples=80, deadline=None)
def test_a_permutation_is_entered_anywhere_and_gives_each_number_once(
    n: int, seed: int, epoch: int, place: int
) -> None:
    order = Permutation(n, seed, epoch)
    whole = [order(i) for i in range(n)]
    assert sorted(whole) == list(range(n))
    assert Permutation(n, seed, epoch)(place % n) == whole[place % n]
