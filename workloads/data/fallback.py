"""When a stream is gone: the next source that the job allows, and nobody can miss it.

A warning on stderr, and from then on every batch (so every beat) names what is read. The positions of the source that
is gone stay in the state, those of this rank's virtual shards and no others: what a resume gave it holds every rank's,
which move on elsewhere. The next attempt tries that source first and goes on where it was left, nothing lost or
repeated.
Without an allowed source SourceGone goes through: the rank fails and its restart tries again. Called by
`workloads.data.feeds`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from workloads.contract.errors import OrchError
from workloads.data.blocks import SourceGone
from workloads.data.stream import Batch, Feed, FeedState

Maker = Callable[[], Feed]


class FallbackFeed:
    """A `Feed` over the first of several that gives data.

    `others`: (name, how it is opened), in order. `own`: the virtual shards of this rank.
    """

    def __init__(
        self, primary: Maker, others: Sequence[tuple[str, Maker]], *,
        name: str, vocab: int, fingerprint: str, own: Iterable[int],
    ) -> None:  # fmt: skip
        self.name, self.vocab, self.fingerprint = name, vocab, fingerprint
        self._own = tuple(own)
        self._others = list(others)
        self._now: Feed | None = None
        try:
            self._now = primary()
        except SourceGone as e:
            self._take_next(e)

    @property
    def left_out(self) -> Mapping[str, int]:
        return {} if self._now is None else self._now.left_out

    def batch(self, state: FeedState) -> Batch:
        """SourceGone when the last source that is allowed is gone too."""
        while True:
            assert self._now is not None
            try:
                batch = self._now.batch(state)
            except SourceGone as e:
                self._take_next(e)
            else:
                return batch if batch.state.shards else self._with_shards(batch, state)

    def _take_next(self, gone: SourceGone) -> None:
        while self._others:
            name, make = self._others.pop(0)
            try:
                self._now = make()
            except (SourceGone, OrchError) as e:
                _say(f"fallback {name} cannot be had either: {e}")
            else:
                self.name = name
                _say(f"{gone}; FROM NOW ON THE RUN TRAINS ON {name.upper()}, as data.fallback allows")
                return
        raise gone

    def _with_shards(self, batch: Batch, before: FeedState) -> Batch:
        """A corpus knows no shards: what a stream left in this rank's stays there; {}: it never read them."""
        shards = {v: before.shards.get(v, {}) for v in self._own}
        return replace(batch, state=FeedState(batch.state.samples, shards))


def _say(text: str) -> None:
    print(f"warning: data: {text}", file=sys.stderr, flush=True)
