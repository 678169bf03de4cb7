"""Heartbeats, rows, checkpoints, a halt and a resume for a script with Hugging Face `accelerate`.

    from workloads.adapters.accelerate import AccelerateRun

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run = AccelerateRun(accelerator)                          # behind prepare(): what it prepared is saved
    for step, batch in run.batches(loader, epochs=3):         # goes on behind the newest checkpoint, in its epoch
        ...
        run.step(step, loss=loss)

Checkpoints are what `accelerator.save_state` writes and the draws of the epoch (`workloads.adapters.draws`), hashed and
verified as those of orch, in the run's directory; how often is said by the job's `checkpoint:`. Batches are the same
after a resume, however the loader shuffles; random numbers that a data set draws itself, for each sample, are not. What
accelerate keeps in folders (FSDP's sharded states) is refused when it is saved. Outside orch nothing happens but the
loop. Called by scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workloads.adapters.draws import Draws
from workloads.runtime import rng
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.script import ScriptRun


class AccelerateRun(ScriptRun):
    """Made behind `accelerator.prepare(...)`: the newest checkpoint that verifies is loaded then."""

    def __init__(self, accelerator: Any) -> None:
        super().__init__(RankEnv.read())
        self._accelerator = accelerator
        self._draws = Draws(self.env.rank) if self.env is not None else None
        self.done_steps: int = self.resume_with(self._save, self._load)

    def _save(self, folder: Path) -> None:
        self._accelerator.save_state(str(folder))
        if self._draws is not None:
            self._draws.save(folder)

    def _load(self, folder: Path) -> None:
        self._accelerator.load_state(str(folder))
        if self._draws is not None:
            self._draws.load(folder)

    def batches(self, loader: Any, epochs: int) -> Iterator[tuple[int, Any]]:
        """(number of the step, batch) over all epochs, from the first batch that no checkpoint has seen.

        ValueError for a loader without a length: nobody could say in which epoch a step is.
        """
        try:
            length = len(loader)
        except TypeError as e:
            raise ValueError("the loader has no length: skip batches by hand, from `run.done_steps` on") from e
        first, skip = divmod(self.done_steps, length) if length else (epochs, 0)
        step = self.done_steps
        for epoch in range(first, epochs):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            of_epoch = self._accelerator.skip_first_batches(loader, skip) if skip else loader
            for batch in self._drawn_alike(loader, of_epoch, within=bool(skip)):
                step += 1
                yield step, batch
            skip = 0

    def _drawn_alike(self, loader: Any, of_epoch: Any, *, within: bool) -> Iterator[Any]:
        """The batches of `of_epoch`, the rest of an epoch of `loader` where it is `within` one: in the order that was
        drawn when the epoch began, and with the generators behind them where the checkpoint found them."""
        if self._draws is None:
            yield from of_epoch
            return
        before = rng.capture() if within else None
        self._draws.open(loader, within=within)
        for i, batch in enumerate(of_epoch):
            if i == 0 and before is not None:
                rng.restore(before)
            yield batch
