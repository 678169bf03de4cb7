"""From the job to a feed: which source, read how, and what instead when it is gone.

    stdlib, text, synthetic, prepared   any sample by its number (`workloads.data.batches`)
    jsonl, parquet, hub                 virtual shards (`workloads.data.shards`), with the fallbacks that the job allows

Called by the trainer and by whoever checks a job's data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from workloads.contract.config.job import STREAMS, DataSpec, EvalSpec, HubSpec, TrainSpec
from workloads.contract.errors import MissingDataError
from workloads.data import hub
from workloads.data.batches import AnyCorpus, BatchPlan
from workloads.data.blocks import BlockSource
from workloads.data.cursor import Cut
from workloads.data.fallback import FallbackFeed
from workloads.data.opening import open_cached, open_source, preload
from workloads.data.reading import Patience
from workloads.data.rowfiles import RowFiles
from workloads.data.shards import ShardFeed, check_sharing
from workloads.data.sources import load_corpus
from workloads.data.stream import Batch, Feed, FeedState
from workloads.data.tokenizers import Tokenizer, bind, load_tokenizer


def open_feed(data: DataSpec, train: TrainSpec, *, rank: int, world_size: int) -> Feed:
    """The feed of one rank. OrchError (E-DATA-...) when the source is missing, damaged or too small.

    SourceGone when a stream gives nothing now and the job allows no other source.
    """
    opening = _Opening(data, train, rank, world_size)
    return opening.stream() if data.source in STREAMS else opening.corpus(_corpus(data, train.seed))


def held_out(feed: Feed, data: DataSpec, spec: EvalSpec, train: TrainSpec) -> Batch | None:
    """The samples to evaluate on, all of them, the same for every rank; None when the job asks for no evaluation.

    OrchError (E-DATA-...) when they cannot be had.
    """
    if spec.every_steps is None:
        return None
    if spec.path is None and spec.split is None:
        assert isinstance(feed, BatchPlan), "streams hold nothing out"
        return feed.held_out(spec.samples)
    dataset = data.dataset and data.dataset.model_copy(update={"split": spec.split})
    changes = {"held_out": 0.0, "fallback": [], "fallback_path": None, "path": spec.path, "dataset": dataset}
    train = train.model_copy(update={"global_batch": spec.samples})
    other = open_feed(data.model_copy(update=changes), train, rank=0, world_size=1)
    return other.batch(FeedState())


def _corpus(data: DataSpec, seed: int) -> AnyCorpus:
    if data.source == "prepared":
        from workloads.data.prepared import load_prepared

        return load_prepared(data.path or "", data.tokenizer, seq_len=data.seq_len)
    return load_corpus(data, seed)


@dataclass(frozen=True)
class _Opening:
    data: DataSpec
    train: TrainSpec
    rank: int
    world_size: int

    @property
    def patience(self) -> Patience:
        return Patience(self.data.read_timeout_s, self.data.read_tries)

    def corpus(self, corpus: AnyCorpus) -> BatchPlan:
        return BatchPlan(
            corpus, seq_len=self.data.seq_len, global_batch=self.train.global_batch, rank=self.rank,
            world_size=self.world_size, seed=self.train.seed, borders=self.data.pack == "documents",
            held_out=self.data.held_out,
        )  # fmt: skip

    def stream(self) -> Feed:
        data, allowed = self.data, self.data.fallback
        check_sharing(data.shards, self.train.global_batch, self.world_size)
        if data.fallback_path is not None and not Path(data.fallback_path).expanduser().exists():
            raise MissingDataError("E-DATA-001", "the fallback text is not there", where=data.fallback_path)
        preload(data)
        tokenizer = load_tokenizer(data.tokenizer)
        others = [(name, self._other(name, tokenizer)) for name in allowed]
        if data.source == "hub" and data.dataset is not None and not hub.is_folder(data.dataset.repo):
            fingerprint = bind(_of_commit(data.dataset, data.text_field), tokenizer)
            primary: Callable[[], Feed] = partial(self._open, data, tokenizer)
        else:
            opened = self._open(data, tokenizer)  # what it holds must be known, so nothing can stand in for it yet
            fingerprint, primary = opened.fingerprint, lambda: opened
        return FallbackFeed(
            primary, others, name=data.source, vocab=tokenizer.vocab_size, fingerprint=fingerprint,
            own=range(self.rank, data.shards, self.world_size),
        )  # fmt: skip

    def _open(self, data: DataSpec, tokenizer: Tokenizer) -> Feed:
        return self.shards(open_source(data), tokenizer)

    def shards(self, source: BlockSource | RowFiles, tokenizer: Tokenizer) -> ShardFeed:
        return ShardFeed(
            source, Cut(self.data.seq_len, tokenizer, self.data.truncate), self.patience,
            shards=self.data.shards, global_batch=self.train.global_batch, rank=self.rank,
            world_size=self.world_size, seed=self.train.seed, borders=self.data.pack == "documents",
        )  # fmt: skip

    def _other(self, name: str, tokenizer: Tokenizer) -> Callable[[], Feed]:
        """How the fallback `name` is opened when it is needed."""
        data = self.data
        if name == "cache":
            return lambda: self.shards(open_cached(data), tokenizer)
        update = {"source": name, "path": data.fallback_path if name == "text" else None}
        return lambda: self.corpus(load_corpus(data.model_copy(update=update), self.train.seed))


def _of_commit(spec: HubSpec, text_field: str) -> str:
    """A commit says what all files hold."""
    said = f"hub\0{spec.repo}\0{spec.config}\0{spec.split}\0{spec.revision}\0{text_field}"
    return hashlib.sha256(said.encode()).hexdigest()
