"""Training on prepared shards: the batches of the text itself, and never those of another tokenizer. Real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dataprep.corpus import make, spec, text_folder
from tests.tokenizers.vocabularies import tokenizer_json
from tests.train.harness import ledger, make_run, train
from workloads.contract.config.job import DataSpec, TrainSpec
from workloads.contract.rundir import OrchHome, RunDir
from workloads.data.feeds import open_feed
from workloads.data.stream import FeedState

FEW: dict[str, Any] = {"train": {"steps": 4}, "checkpoint": {"every_steps": 2}, "model": {"layers": 1}}


def hashes(run: RunDir) -> list[str]:
    return [row["batch_hash"] for row in ledger(run)]


def test_prepared_or_not_the_batches_are_the_same(tmp_path: Path) -> None:
    text, train_spec = text_folder(tmp_path / "text"), TrainSpec(global_batch=8)
    path = str(tokenizer_json(tmp_path / "tokenizer.json"))
    make(spec(text, path), tmp_path / "shards")
    shards = DataSpec(source="prepared", path=str(tmp_path / "shards"), tokenizer=path)
    both = [open_feed(data, train_spec, rank=0, world_size=1) for data in (spec(text, path), shards)]
    state = FeedState(64)  # beyond the first epoch of neither
    for _ in range(40):
        one, other = (feed.batch(state) for feed in both)
        assert np.array_equal(one.x_BT, other.x_BT)
        assert (one.hash_high, one.hash_low, one.docs) == (other.hash_high, other.hash_low, other.docs)
        state = one.state
    assert both[0].vocab == both[1].vocab


@pytest.mark.long
def test_the_same_ledger_and_no_other_tokenizer(tmp_path: Path, home: OrchHome) -> None:
    text = text_folder(tmp_path / "text")
    path = tokenizer_json(tmp_path / "tokenizer.json")
    data = {"source": "text", "path": str(text), "tokenizer": str(path)}
    direct = make_run(tmp_path / "a", {**FEW, "data": data})
    assert train(direct, world=1) == [0]
    make(spec(text, str(path)), tmp_path / "shards")
    prepared = {"source": "prepared", "path": str(tmp_path / "shards"), "tokenizer": str(path)}
    run = make_run(tmp_path / "b", {**FEW, "data": prepared})
    assert train(run, world=1) == [0]
    assert hashes(run) == hashes(direct)
    assert len(set(hashes(run))) == 4

    tokenizer_json(path, vocab_size=270)  # the file is another one now
    assert train(direct, world=1, attempt=2) == [77]
    assert "E-TRAIN-007" in direct.rank_log(0).read_text()
    assert train(run, world=1, attempt=2) == [77]
    assert "E-DATA-032" in run.rank_log(0).read_text()


@pytest.mark.long
def test_a_model_with_too_few_rows_is_refused(tmp_path: Path, home: OrchHome) -> None:
    path = tokenizer_json(tmp_path / "tokenizer.json")
    text = text_folder(tmp_path / "text", files=1)
    data = {"source": "text", "path": str(text), "tokenizer": str(path)}
    run = make_run(tmp_path, {**FEW, "data": data, "model": {"vocab": 100}})
    assert train(run, world=1) == [77]
    assert "E-TRAIN-024" in run.rank_log(0).read_text()


@pytest.mark.long
def test_a_shard_that_was_damaged_ends_a_training_before_it_begins(tmp_path: Path, home: OrchHome) -> None:
    make(spec(text_folder(tmp_path / "text")), tmp_path / "shards")
    shard = tmp_path / "shards" / "shard_00000.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    run = make_run(tmp_path, {**FEW, "data": {"source": "prepared", "path": str(tmp_path / "shards")}})
    assert train(run, world=1) == [77]
    log = run.rank_log(0).read_text()
    assert "E-DATA-033" in log and "shard_00000.bin" in log
    assert not ledger(run)
