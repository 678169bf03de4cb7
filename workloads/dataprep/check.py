"""Read a job's data as its training would, without a model, and say how it goes: speed, waits, source, first text.

The batches are those of a training on one rank, which reads the whole global batch: what it delivers is what all ranks
together may eat. What comes is also looked at as text: bytes that are none are no-go. Writes nothing. Called by
`workloads.dataprep.task`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import OrchError, escape
from workloads.data.blocks import SourceGone
from workloads.data.feeds import open_feed
from workloads.data.prefetch import Prefetcher, prefetcher
from workloads.data.stream import Batch, Feed, FeedState, batch_hash
from workloads.data.tokenizers import Tokenizer, load_tokenizer
from workloads.dataprep.istext import Looked
from workloads.dataprep.origins import settled

HEAD_TOKENS = 120
HEAD_CHARS = 240
SAMPLED_TOKENS = 1 << 20
"""of the batches' rows, decoded again to see whether they are text"""
STALL_S = 2.0
"""a fetch that takes longer counts as one, as in the smoke gates"""


@dataclass
class Reading:
    """What was seen. Seconds unless said otherwise; `why`: what is wrong, "" for nothing."""

    asked: str
    why: str = ""
    error: dict[str, Any] | None = None
    open_s: float = 0.0  # until the feed was there
    first_s: float | None = None  # from then to the first batch
    waits: list[float] = field(default_factory=list)  # of each batch after it
    read_s: float = 0.0
    tokens: int = 0  # after the first batch, as the rates
    documents: int | None = None
    sources: list[str] = field(default_factory=list)
    head: str | None = None
    first_hash: str | None = None
    left_out: dict[str, int] | None = None  # why documents that were met are not used, and how many
    looked_at: int = 0  # tokens
    text: Looked = field(default_factory=Looked)  # of the rows that were looked at

    @property
    def batches(self) -> int:
        return len(self.waits) + (self.first_s is not None)

    def rate(self, count: int | None) -> float | None:
        return count / self.read_s if count is not None and self.read_s > 0 and self.waits else None

    def as_json(self) -> dict[str, Any]:
        ordered = sorted(self.waits)
        last = len(ordered) - 1
        fetch = {
            "p50_s": ordered[last // 2], "p95_s": ordered[round(last * 0.95)], "longest_s": ordered[-1],
            "stalls": sum(w > STALL_S for w in ordered),
        } if ordered else {"p50_s": None, "p95_s": None, "longest_s": None, "stalls": 0}  # fmt: skip
        return {
            "asked_source": self.asked, "sources": self.sources, "batches": self.batches, "tokens": self.tokens,
            "documents": self.documents, "tokens_per_s": self.rate(self.tokens),
            "documents_per_s": self.rate(self.documents), "open_s": self.open_s, "first_s": self.first_s,
            "fetch": fetch, "head": self.head, "first_hash": self.first_hash, "error": self.error,
            "left_out": self.left_out, "no_utf8_share": self.text.share,
        }  # fmt: skip


Tell = Callable[[Reading, Batch, float], None]
"""Given what was seen so far, the newest batch and how long it was waited for."""


def check(job: JobSpec, tell: Tell, stop: Callable[[], bool]) -> Reading:
    """Read until the batches or seconds of `job.task` are over or `stop` says so. What is wrong is in `why`."""
    seen = Reading(job.data.source)
    try:
        _read(job, seen, tell, stop)
        seen.text.refuse(seen.asked, job.data.path)
    except OrchError as e:
        seen.why, seen.error = e.what, {**e.as_dict(), "text": e.render()}
    except (SourceGone, TimeoutError, ValueError, OSError) as e:
        seen.why = escape(str(e) or type(e).__name__, 400)
    if not seen.why and seen.sources and seen.sources != [seen.asked]:
        seen.why = f"read from {', '.join(seen.sources)} instead of {seen.asked}"
    return seen


def _read(job: JobSpec, seen: Reading, tell: Tell, stop: Callable[[], bool]) -> None:
    began = time.perf_counter()
    data = settled(job.data)
    feed = open_feed(data, job.train, rank=0, world_size=1)
    seen.open_s = time.perf_counter() - began
    tokenizer = load_tokenizer(job.data.tokenizer)
    fetcher = prefetcher(feed, FeedState(), data)
    try:
        _first(seen, feed, fetcher, tokenizer, tell)
        begin = time.perf_counter()
        while not stop() and not _enough(job, seen):
            batch, waited = _next(fetcher)
            seen.waits.append(waited)
            seen.read_s = time.perf_counter() - begin
            _note(seen, feed, batch)
            _look_at(seen, batch, tokenizer)
            seen.tokens += batch.x_BT.size
            if batch.docs is not None:
                seen.documents = (seen.documents or 0) + batch.docs
            tell(seen, batch, waited)
    finally:
        fetcher.close()
        seen.left_out = dict(feed.left_out)


def _enough(job: JobSpec, seen: Reading) -> bool:
    most = job.task.batches
    return seen.read_s >= job.task.seconds or (most is not None and seen.batches >= most)


def _first(seen: Reading, feed: Feed, fetcher: Prefetcher, tokenizer: Tokenizer, tell: Tell) -> None:
    batch, seen.first_s = _next(fetcher)
    _note(seen, feed, batch)
    _look_at(seen, batch, tokenizer)
    seen.first_hash = batch_hash(batch.hash_high, batch.hash_low)
    text = tokenizer.decode(batch.x_BT[0, :HEAD_TOKENS])
    seen.head = text[:HEAD_CHARS]
    tell(seen, batch, seen.first_s)


def _next(fetcher: Prefetcher) -> tuple[Batch, float]:
    begin = time.perf_counter()
    return fetcher.next(), time.perf_counter() - begin


def _look_at(seen: Reading, batch: Batch, tokenizer: Tokenizer) -> None:
    """Count what of the batch is no text, until enough was looked at."""
    for row in batch.x_BT:
        if seen.looked_at >= SAMPLED_TOKENS:
            return
        seen.looked_at += len(row)
        seen.text.at(tokenizer.decode(row))


def _note(seen: Reading, feed: Feed, batch: Batch) -> None:
    if batch.source not in seen.sources:
        seen.sources.append(batch.source)
    top = int(np.max(batch.y_BT))
    if top >= feed.vocab:
        raise ValueError(f"token {top} is not below the {feed.vocab} of the tokenizer")
