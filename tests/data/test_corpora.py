"""The order of samples, the corpus and the prefetch thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from workloads.contract.config.job import DataSpec
from workloads.contract.errors import LocalError
from workloads.data import sources
from workloads.data.batches import BatchPlan
from workloads.data.order import Permutation
from workloads.data.prefetch import Prefetcher
from workloads.data.sources import Corpus, load_corpus
from workloads.data.stream import Batch, FeedState, batch_hash


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(Permutation(50, seed, epoch)(i) for i in range(50)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    with pytest.raises(IndexError):
        Permutation(5, 0, 0)(5)


def corpus(size: int = 4001) -> Corpus:
    return Corpus(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), "synthetic", "x")


def plans(world: int, global_batch: int = 8) -> list[BatchPlan]:
    c = corpus()
    return [BatchPlan(c, seq_len=16, global_batch=global_batch, rank=r, world_size=world, seed=7) for r in range(world)]


def global_hash(parts: list[Batch]) -> str:
    return batch_hash(sum(float(b.hash_high) for b in parts), sum(float(b.hash_low) for b in parts))


def hashes(world: int, steps: int, samples: int = 0) -> list[str]:
    out, state = [], FeedState(samples)
    for _ in range(steps):
        parts = [p.batch(state) for p in plans(world)]
        state = parts[0].state
        out.append(global_hash(parts))
    return out


def test_batches_are_what_they_always_were() -> None:
    """Checkpoints of before go on with the very batches that their runs would have had."""
    entered = [hashes(2, 1, samples)[0] for samples in (0, 8, 320)]
    assert entered == ["e5bc9b622118e469", "f3140410354e210e", "a118137f1f13e1d5"]


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_every_world_size_sees_the_same_global_batches(world: int) -> None:
    assert hashes(world, 40) == hashes(1, 40)


def test_any_position_can_be_entered() -> None:
    assert hashes(2, 30, samples=10 * 8) == hashes(1, 40)[10:]


def test_an_epoch_shows_every_window_once() -> None:
    plan = plans(1)[0]
    seen, state = [], FeedState()
    while state.samples + 8 <= plan.windows:
        batch = plan.batch(state)
        state = batch.state
        seen += [row.tobytes() for row in batch.x_BT]
    assert len(seen) == len(set(seen)) and plan.windows - len(seen) < 8


def test_targets_are_the_input_shifted_by_one() -> None:
    batch = plans(2)[1].batch(FeedState(0))
    assert batch.x_BT.shape == batch.y_BT.shape == (4, 16)
    assert np.array_equal(batch.x_BT[:, 1:], batch.y_BT[:, :-1])


def test_the_hash_sees_an_exchange_of_samples() -> None:
    a, b = (plans(1)[0].batch(FeedState(s)) for s in (0, 8))
    assert global_hash([a]) != global_hash([b])


def test_the_standard_library_is_text_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_STDLIB_BYTES", 4 << 20)
    data = DataSpec(source="stdlib")
    one, two = load_corpus(data, 0), load_corpus(data, 1)
    assert one.fingerprint == two.fingerprint
    assert len(one.tokens) == 4 << 20
    assert b"def " in one.tokens[:100_000].tobytes()


def test_a_corpus_that_is_missing_or_small_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot read"):
        load_corpus(DataSpec(source="text", path=str(tmp_path / "no")), 0)
    (tmp_path / "short").write_text("short")
    with pytest.raises(LocalError, match="one sample needs"):
        load_corpus(DataSpec(source="text", path=str(tmp_path / "short")), 0)


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    plan = plans(1)[0]

    def make(state: FeedState) -> Batch:
        if state.samples >= 5 * 8:
            raise ValueError("the fifth is bad")
        return plan.batch(state)

    data = Prefetcher(make, FeedState(8))
    assert [data.next().samples for _ in range(4)] == [16, 24, 32, 40]
    with pytest.raises(ValueError, match="the fifth"):
        data.next()
    assert data.times().p95_s >= data.times().p50_s >= 0


def test_prefetch_is_bounded_and_ends() -> None:
    made = []
    plan = plans(1)[0]

    def make(state: FeedState) -> Batch:
        made.append(state.samples)
        return plan.batch(state)

    data = Prefetcher(make, FeedState())
    data.next()
    threading.Event().wait(0.3)
    assert len(made) <= 4
    data.close()
    assert not data._thread.is_alive()
