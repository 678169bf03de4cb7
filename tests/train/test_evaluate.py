"""The loss on what is held out: the definition, the same by any number of ranks, and training as if it were not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tests.train.harness import exactness, make_run, train
from workloads.contract.beats import BeatReader
from workloads.contract.config.job import DataSpec, EvalSpec, JobSpec, ModelSpec, TrainSpec
from workloads.contract.errors import LocalError
from workloads.contract.rundir import RunDir
from workloads.data.batches import BatchPlan
from workloads.data.feeds import held_out, open_feed
from workloads.data.sources import Corpus
from workloads.data.stream import FeedState
from workloads.models.decoder import Decoder
from workloads.train.evaluate import Evaluator
from workloads.train.machine import Machine

CPU = Machine(torch.device("cpu"), False)


def plan(tokens: int, share: float, *, seq_len: int = 4, batch: int = 6, borders: bool = False) -> BatchPlan:
    corpus = Corpus(np.arange(tokens, dtype=np.uint32), "counted", "x", tokens, end_id=7)
    return BatchPlan(
        corpus, seq_len=seq_len, global_batch=batch, rank=0, world_size=1, seed=3, borders=borders, held_out=share
    )


def test_what_is_held_out_is_in_no_batch() -> None:
    feed, state, seen = plan(401, 0.1), FeedState(), set[int]()
    assert (feed.windows, feed.held) == (90, 10)
    while state.samples < 3 * feed.windows:
        batch = feed.batch(state)
        seen |= set(batch.x_BT.flatten().tolist())
        state = batch.state
    kept = feed.held_out(100)
    assert kept.x_BT.shape == (10, 4)
    assert seen == set(range(360)) and set(kept.x_BT.flatten().tolist()) == set(range(360, 400))
    assert np.array_equal(kept.y_BT, kept.x_BT + 1)
    some = feed.held_out(3)
    assert np.array_equal(some.x_BT, kept.x_BT[:3])
    assert plan(401, 0.0).held == 0 and plan(401, 0.001).held == 1
    with pytest.raises(LocalError, match="nothing is left to train on"):
        plan(6, 0.5)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("samples", "world", "micro"), [(7, 1, 2), (7, 1, 64), (7, 3, 2), (2, 3, 1)])
def test_it_is_the_mean_over_tokens(samples: int, world: int, micro: int, documents: bool) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelSpec(dim=32, layers=1, heads=4, kv_heads=2), 128)
    model.loss_chunk = 5  # in several chunks
    batch = plan(128, 0.5, borders=documents).held_out(samples)
    assert documents == (batch.cu_seqlens is not None)
    x, y = (torch.from_numpy(a.astype(np.int64)) for a in (batch.x_BT, batch.y_BT))
    expected = F.cross_entropy(model(x).double().flatten(0, 1), y.flatten()).item()
    parts = [
        Evaluator(batch, every=1, rank=k, world_size=world, micro=micro, newest=None).evaluate(model, CPU, 1)
        for k in range(world)
    ]
    assert sum(p.loss for p in parts) == pytest.approx(expected, rel=1e-6)  # each is a share of the one mean
    assert all((p.samples, p.tokens) == (samples, samples * 4) for p in parts)
    assert all(p.grad is None for p in model.parameters())


def test_when_it_is_due() -> None:
    batch = plan(128, 0.5).held_out(2)
    one = Evaluator(batch, every=10, rank=0, world_size=1, micro=1, newest=None)
    assert [n for n in range(36) if one.is_due(n, 35)] == [10, 20, 30, 35]
    one.newest = (20, 1.0)  # by an attempt before
    assert [n for n in range(36) if one.is_due(n, 35)] == [30, 35]


def test_other_files_are_evaluated_on(tmp_path: Path) -> None:
    for name, text in (("train", "a" * 400), ("other", "b" * 400)):
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text[:40]}) + "\n" for _ in range(20)))
    train_spec = TrainSpec(global_batch=2)
    for source, name in (("text", "txt"), ("jsonl", "jsonl")):
        paths = [str(tmp_path / f"{k}.{name}") for k in ("train", "other")]
        data = DataSpec.model_validate({"source": source, "path": paths[0], "seq_len": 16, "shards": 2})
        feed = open_feed(data, train_spec, rank=1, world_size=2)
        batch = held_out(feed, data, EvalSpec(every_steps=1, samples=5, path=paths[1]), train_spec)
        assert batch is not None and batch.x_BT.shape == (5, 16)
        assert ord("b") in batch.x_BT and ord("a") not in batch.x_BT
    assert held_out(feed, data, EvalSpec(), train_spec) is None


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({"eval": {"every_steps": 5}}, "nothing to evaluate on"),
        ({"eval": {"path": "x"}}, "eval.path: is for data.source text"),
        ({"eval": {"split": "test"}}, "eval.split: is for data.source hub"),
        ({"data": {"source": "jsonl", "path": "x", "held_out": 0.1}}, "data.held_out: a stream"),
        ({"data": {"held_out": 0.6}}, "less than or equal to 0.5"),
    ],
)
def test_what_cannot_be_is_said(job: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        JobSpec.model_validate({"name": "x", **job})


def rows(run: RunDir) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    return [{k: r[k] for k in ("step", "loss", "samples", "tokens")} for r in found]


DATA = {"source": "synthetic", "seq_len": 32, "held_out": 0.1}
JOB: dict[str, Any] = {"data": DATA, "train": {"steps": 12}, "eval": {"every_steps": 4, "samples": 9}}


@pytest.mark.long
def test_training_goes_on_as_if_it_were_not_and_a_resume_makes_no_row_twice(tmp_path: Path) -> None:
    alone = make_run(tmp_path / "alone", {**JOB, "eval": {}})
    assert train(alone, world=1) == [0]
    whole = make_run(tmp_path / "whole", JOB)
    assert train(whole, world=1) == [0], whole.rank_log(0).read_text()
    assert exactness(whole) == exactness(alone) and not alone.evaluations.exists()
    assert [r["step"] for r in rows(whole)] == [4, 8, 12]
    assert "step 8 | held-out loss" in whole.rank_log(0).read_text()
    last = list(BeatReader(whole.heartbeat(0), 0).read())[-1]
    windows = open_feed(DataSpec.model_validate(DATA), TrainSpec(), rank=0, world_size=1).windows  # type: ignore[attr-defined]
    assert last.get("epoch") == pytest.approx(12 * 8 / windows)
    assert last.get("eval_loss") == rows(whole)[-1]["loss"]
    whole.evaluations.write_bytes(whole.evaluations.read_bytes().splitlines(keepends=True)[0])
    for folder in whole.checkpoints.iterdir():  # as if it had been killed behind the checkpoint of step 5
        if folder.name > "step_00000005":
            folder.rename(folder.with_name(f".{folder.name}"))
    assert train(whole, world=1, attempt=2) == [0], whole.rank_log(0).read_text()
    assert [r["step"] for r in rows(whole)] == [4, 8, 12] and exactness(whole) == exactness(alone)


@pytest.mark.long
@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.proof), "fsdp2"])
def test_two_ranks_say_the_same(tmp_path: Path, parallel: str) -> None:
    one = make_run(tmp_path / "one", JOB)
    assert train(one, world=1) == [0]
    two = make_run(tmp_path / "two", {**JOB, "train": {"steps": 12, "parallel": parallel, "micro_batch": 2}})
    assert train(two, world=2) == [0, 0], two.rank_log(0).read_text()
    assert [r["loss"] for r in rows(two)] == pytest.approx([r["loss"] for r in rows(one)], rel=1e-5)
