"""The train loop: fetch, forward and backward, step, one reduction for everything, checkpoint, halt.

Everything that ranks must agree on (loss, halt, "a checkpoint is due") comes out of the same reduction one step late,
so all ranks do the same at the same step. Called by `workloads.train.__main__`.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from workloads.contract.config.job import JobSpec
from workloads.contract.states import Phase
from workloads.data.prefetch import Prefetcher
from workloads.data.stream import Batch, batch_hash
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction
from workloads.runtime.run import Run
from workloads.runtime.shards import ShardStates
from workloads.train.books import Books, StepFacts, StepRow
from workloads.train.evaluate import Evaluator
from workloads.train.ladder import FEW, NanLadder
from workloads.train.machine import Machine
from workloads.train.resume import Position, trainer_state
from workloads.train.saves import Saves
from workloads.train.saving import HURRY_S, try_again, wait_s
from workloads.train.step import accumulate, documents_of, on_device, update


class Lane(IntEnum):
    """Places in the vector that ranks sum each step."""

    LOSS = 0
    TOKENS = 1
    GRAD_NORM = 2  # rank 0's; the same on all
    HALT = 3
    SAVE = 4  # rank 0's clock says that a checkpoint is due
    HASH_HIGH = 5
    HASH_LOW = 6
    SAVED = 7  # the step whose save is over on a rank


@dataclass
class Trainer:
    env: RankEnv
    run: Run
    job: JobSpec
    machine: Machine
    model: nn.Module  # a Decoder, wrapped (workloads.train.parallel) when there are several ranks
    optimizer: torch.optim.Optimizer
    data: Prefetcher
    shards: ShardStates
    checkpointer: Checkpointer
    reduction: StepReduction[StepFacts]
    books: Books
    bound: dict[str, object]
    fingerprint: str
    position: Position
    evaluator: Evaluator | None = None
    epoch_samples: int | None = None
    """samples in the whole corpus; None: a stream does not know"""
    mfu_a_token: float | None = None
    """share of the GPUs' peak that one token a second makes; None: the peak is not known"""

    def __post_init__(self) -> None:
        self._halt = self._save = False
        self._data_source: str = self.job.data.source
        self._saves = Saves(self.checkpointer, self.job.checkpoint)
        self._step_began = time.perf_counter()
        self._row: StepRow | None = None
        self._nan = NanLadder(self.job.train.on_nan)
        self._memory_at, self._memory_mib = -math.inf, dict[str, float]()

    def train(self) -> int:
        """Steps until the last one or a halt; returns the exit code."""
        self._saves.open()
        try:
            return self._train()
        finally:
            self._saves.close()

    def _train(self) -> int:
        while self.position.step < self.job.train.steps:
            self._evaluate()  # behind the checkpoint of that step: a kill costs the evaluation and no step
            self._step()
            self._saves.take_note()
            last = self.position.step == self.job.train.steps
            if (self._save or self._saves.is_due(self.position.step)) and not (self._halt or last):
                self._checkpoint()
            if self._halt and not last and not self._is_skipping():
                return self._halted()
        return self._finished()

    def _step(self) -> None:
        batch = self.data.next()
        step = self.position.step + 1
        loss = self._forward_backward(batch)
        lr, grad_norm = update(self.model, self.optimizer, self.job.train, step)
        self.position = Position(step, batch.samples, batch.state.shards)
        self._data_source = batch.source
        now = time.perf_counter()
        facts = StepFacts(step, lr, now - self._step_began, self.data.times())
        self._step_began = now
        sums = [0.0] * len(Lane)
        sums[Lane.TOKENS] = float(batch.x_BT.size)
        sums[Lane.HALT] = float(self.run.asked_to_halt)
        sums[Lane.SAVE] = float(self._saves.says_due())
        sums[Lane.SAVED] = self._saves.says_finished
        sums[Lane.HASH_HIGH], sums[Lane.HASH_LOW] = float(batch.hash_high), float(batch.hash_low)
        on_device = {Lane.LOSS.value: loss}
        if self.env.rank == 0:
            on_device[Lane.GRAD_NORM.value] = grad_norm
        self._absorb(self.reduction.push(sums, facts, on_device=on_device))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean over the *global* batch; returns this rank's loss sum, on the device."""
        x_BT, y_BT = (on_device(a, self.machine).long() for a in (batch.x_BT, batch.y_BT))
        documents_BT = None
        if batch.cu_seqlens is not None:
            documents_BT = on_device(documents_of(batch.cu_seqlens, batch.x_BT.shape), self.machine)
        # DDP averages over ranks, so each rank divides by its share of the global batch
        scale = self.env.world_size / (self.job.train.global_batch * self.job.data.seq_len)
        micro = self.job.train.micro_batch
        return accumulate(
            self.model, x_BT, y_BT, machine=self.machine, micro=micro, scale=scale, documents_BT=documents_BT
        )

    def _absorb(self, landed: tuple[list[float], StepFacts] | None) -> None:
        """Take in the sums of the step before: its row, its beat, what ranks agreed on."""
        if landed is None:
            if self._row is None:
                self.run.beat(step=self.position.step, steps=self.job.train.steps)
            return
        sums, facts = landed
        self._halt = self._halt or sums[Lane.HALT] > 0
        self._save = self._save or sums[Lane.SAVE] > 0
        self._saves.hear_finished(sums[Lane.SAVED])
        row = StepRow(
            facts,
            loss=sums[Lane.LOSS] / sums[Lane.TOKENS],
            grad_norm=sums[Lane.GRAD_NORM],
            toks_per_s=sums[Lane.TOKENS] / facts.step_time_s,
            batch_hash=batch_hash(sums[Lane.HASH_HIGH], sums[Lane.HASH_LOW]),
        )
        self._row = row
        self.books.note(row)
        self._beat(row)
        self._nan.note(row.facts.step, row.loss, row.grad_norm)

    def _beat(self, row: StepRow) -> None:
        f = row.facts
        self.run.beat(
            step=f.step, steps=self.job.train.steps, loss=row.loss, lr=f.lr, grad_norm=row.grad_norm,
            toks_per_s=row.toks_per_s, step_time_s=f.step_time_s, dt_fetch_s=f.fetch.last_s,
            fetch_p50_s=f.fetch.p50_s, fetch_p95_s=f.fetch.p95_s, data_source=self._data_source,
            mfu=None if self.mfu_a_token is None else row.toks_per_s * self.mfu_a_token,
            skipped_steps=self._nan.total or None,
            **self._progress(), **self._memory(),
        )  # fmt: skip

    def _progress(self) -> dict[str, float]:
        """How often the corpus was seen, where that is known, and the newest held-out loss."""
        told = {}
        if self.epoch_samples is not None:
            told["epoch"] = self.position.samples / self.epoch_samples
        if self.evaluator is not None and self.evaluator.newest is not None:
            told["eval_loss"] = self.evaluator.newest[1]
        return told

    def _memory(self) -> dict[str, float]:
        """MiB on the GPU, looked at once a second: the look costs more than the line."""
        now = time.monotonic()
        if self.machine.cuda and now - self._memory_at >= 1.0:
            self._memory_at = now
            told = {"gpu_mem_alloc": torch.cuda.memory_allocated(), "gpu_mem_reserved": torch.cuda.memory_reserved()}
            self._memory_mib = {name: size / 2**20 for name, size in told.items()}
        return self._memory_mib

    def _checkpoint(self, *, stay: bool = False) -> bool:
        """Save the state after the current step, its row written first. False when it could not be saved.

        stay: until it is saved, whatever checkpoint.mode says.
        """
        self._absorb(self.reduction.drain())
        if self._is_spoilt():
            self._tell_spoilt()
            return False
        self.run.phase(Phase.CHECKPOINTING)
        self.shards.now = self.position.shards
        state = trainer_state(self.position, self.bound, self.fingerprint)
        saved = self._saves.save(self.position.step, state, self.books.sync, stay=stay)
        self._save = False
        if self._row and not self._halt:
            self._beat(self._row)  # training again: the phase is over
        self._step_began = time.perf_counter()
        return saved

    def _evaluate(self) -> None:
        step = self.position.step
        if self.evaluator is None or not self.evaluator.is_due(step, self.job.train.steps):
            return
        self._absorb(self.reduction.drain())
        self.run.phase(Phase.EVALUATING)
        done = self.evaluator.evaluate(self.model, self.machine, step)
        self.books.note_evaluation(done)
        self.run.show_evaluation(step, done.loss)
        if self._row:
            self._beat(self._row)  # training again: the phase is over
        self._step_began = time.perf_counter()

    def _is_spoilt(self) -> bool:
        """A NaN is in every weight after it, and would be in the newest checkpoint, and soon in all that are kept.

        No step behind the last shows whether weights or a batch were bad: few skips at the end are the batches'.
        """
        row = self._row
        if row is None or (math.isfinite(row.loss) and math.isfinite(row.grad_norm)):
            return False
        last = self.position.step == self.job.train.steps
        return not (last and math.isfinite(row.loss) and self._nan.in_a_row <= FEW)

    def _is_skipping(self) -> bool:
        """The newest step was skipped: whether weights are spoilt is seen at the next, and the ladder soon ends it."""
        self._absorb(self.reduction.drain())
        return self._is_spoilt()

    def _tell_spoilt(self) -> None:
        assert self._row is not None
        told = f"step {self.position.step}: loss {self._row.loss:g}, grad_norm {self._row.grad_norm:g}"
        print(f"warning: no checkpoint of {told}; older ones stay", file=sys.stderr, flush=True)
        self._save = True  # after the next step
        self._saves.skip()

    def _save_surely(self) -> bool:
        """As `_checkpoint`, again and again while the halt's clock has time for it."""
        began, failed = time.monotonic(), 0
        urgent_at: float | None = None
        while True:
            try_began = time.monotonic()
            if self._checkpoint(stay=True):
                return True
            if self._is_spoilt():
                return False
            failed += 1
            now = time.monotonic()
            if urgent_at is None and self.run.halt_is_urgent:
                urgent_at = now
            goes_on = try_again(
                now + wait_s(failed, HURRY_S), began=began, try_s=now - try_began, grace_s=self.job.halt.grace_s,
                halt_at=self.run.asked_at, urgent_at=urgent_at,
            )  # fmt: skip
            if not self.checkpointer.agreement.from_rank0(goes_on):
                return False
            time.sleep(wait_s(failed, HURRY_S))

    def _halted(self) -> int:
        self.run.phase(Phase.HALTING)
        saved = self._save_surely()
        path = self.checkpointer.last if saved else None
        print(f"halted at step {self.position.step}, checkpoint: {path.name if path else 'none'}", flush=True)
        return self.run.halted(self.position.step, checkpoint=path)

    def _finished(self) -> int:
        if not self._save_surely():
            print("error: the last checkpoint could not be saved", file=sys.stderr, flush=True)
            return 1
        self._evaluate()
        print(f"done: {self.position.step} steps", flush=True)
        loss = self._row.loss if self._row else None
        return self.run.done(self.position.step, steps=self.job.train.steps, loss=loss, **self._progress())
