"""The order of an epoch after a resume, whoever draws it: torch's generator, one of the loader, one of its sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from workloads.adapters.draws import Draws, generators
from workloads.runtime import rng

LENGTH, BATCH, EPOCHS = 21, 2, 3
A_EPOCH = -(-LENGTH // BATCH)


def loader_of(kind: str) -> Any:
    data = list(range(LENGTH))
    if kind == "torch":
        return DataLoader(data, batch_size=BATCH, shuffle=True)
    generator = torch.Generator().manual_seed(5)
    if kind == "loader":
        return DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator)
    return DataLoader(data, batch_size=BATCH, sampler=RandomSampler(data, generator=generator))


def train(kind: str, begin: int, folder: Path, *, stop: int | None = None) -> list[list[int]]:
    """The batches behind step `begin`, each step drawing a number as dropout does; a checkpoint at step `stop`."""
    torch.manual_seed(1)
    loader, draws = loader_of(kind), Draws(0)
    if begin:
        torch.manual_seed(99)  # a new process has drawn who knows what
        draws.load(folder)
        torch.set_rng_state(torch.load(folder / "torch.pt"))
    step, seen = begin, []
    first, skip = divmod(begin, A_EPOCH)
    for _ in range(first, EPOCHS):
        before = rng.capture() if skip else None
        draws.open(loader, within=bool(skip))
        for i, batch in enumerate(loader):
            if i < skip:
                continue
            if before is not None and i == skip:
                rng.restore(before)
            step += 1
            seen.append(batch.tolist())
            torch.rand(3)
            if step == stop:
                draws.save(folder)
                torch.save(torch.get_rng_state(), folder / "torch.pt")
                return seen
        skip = 0
    return seen


@pytest.mark.parametrize("kind", ["torch", "loader", "sampler"])
@pytest.mark.parametrize("stop", [4, A_EPOCH - 1, A_EPOCH, A_EPOCH + 1, 2 * A_EPOCH + 3])
def test_a_resume_draws_the_order_that_was_drawn(kind: str, stop: int, tmp_path: Path) -> None:
    whole = train(kind, 0, tmp_path)
    assert len(whole) == EPOCHS * A_EPOCH and whole[:A_EPOCH] != whole[A_EPOCH : 2 * A_EPOCH]
    assert train(kind, 0, tmp_path, stop=stop) + train(kind, stop, tmp_path) == whole


def test_a_second_resume_within_the_same_epoch(tmp_path: Path) -> None:
    whole = train("sampler", 0, tmp_path)
    parts = [train("sampler", a, tmp_path, stop=b) for a, b in ((0, 3), (3, 7), (7, 14), (14, None))]
    assert [batch for part in parts for batch in part] == whole


def test_a_checkpoint_without_draws_changes_nothing(tmp_path: Path) -> None:
    draws, loader = Draws(1), loader_of("sampler")
    draws.load(tmp_path)
    before = generators(loader)[0].get_state()
    draws.open(loader, within=True)
    assert torch.equal(generators(loader)[0].get_state(), before)
