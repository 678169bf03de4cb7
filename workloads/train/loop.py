"""The train loop: fetch, forward and backward, step, one reduction for everything, checkpoint, halt.

Everything that ranks must agree on (loss, halt, "a checkpoint is due") comes out of the same reduction one step late,
so all ranks do the same at the same step. Called by `workloads.train.__main__`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from workloads.contract.config.job import JobSpec
from workloads.contract.states import Phase
from workloads.data.batches import Batch, batch_hash
from workloads.data.prefetch import Prefetcher
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction
from workloads.runtime.run import Run
from workloads.train.books import Books, StepFacts, StepRow
from workloads.train.machine import Machine
from workloads.train.resume import Position, trainer_state
from workloads.train.step import accumulate, update

RETRY_SAVE_S = 60.0
HALT_SAVE_TRIES = 3
HALT_SAVE_WAIT_S = 5.0


class Lane(IntEnum):
    """Places in the vector that ranks sum each step."""

    LOSS = 0
    TOKENS = 1
    GRAD_NORM = 2  # rank 0's; the same on all
    HALT = 3
    SAVE = 4  # rank 0's clock says that a checkpoint is due
    HASH_HIGH = 5
    HASH_LOW = 6


@dataclass
class Trainer:
    env: RankEnv
    run: Run
    job: JobSpec
    machine: Machine
    model: nn.Module  # a Decoder, wrapped by DDP when there are several ranks
    optimizer: torch.optim.Optimizer
    data: Prefetcher
    checkpointer: Checkpointer
    reduction: StepReduction[StepFacts]
    books: Books
    bound: dict[str, object]
    fingerprint: str
    position: Position

    def __post_init__(self) -> None:
        self._halt = self._save = False
        self._save_at = self._next_save()
        self._step_began = time.perf_counter()
        self._row: StepRow | None = None

    def train(self) -> int:
        """Steps until the last one or a halt; returns the exit code."""
        train, every = self.job.train, self.job.checkpoint.every_steps
        while self.position.step < train.steps:
            self._step()
            last = self.position.step == train.steps
            if (self._save or (every and self.position.step % every == 0)) and not (self._halt or last):
                self._checkpoint()
            if self._halt and not last:
                return self._halted()
        return self._finished()

    def _step(self) -> None:
        batch = self.data.next()
        step = self.position.step + 1
        loss = self._forward_backward(batch)
        lr, grad_norm = update(self.model, self.optimizer, self.job.train, step)
        self.position = Position(step, batch.samples)
        now = time.perf_counter()
        facts = StepFacts(step, lr, now - self._step_began, self.data.times())
        self._step_began = now
        sums = [0.0] * len(Lane)
        sums[Lane.TOKENS] = float(batch.x_BT.size)
        sums[Lane.HALT] = float(self.run.asked_to_halt)
        sums[Lane.SAVE] = float(self.env.rank == 0 and self._save_at is not None and time.monotonic() >= self._save_at)
        sums[Lane.HASH_HIGH], sums[Lane.HASH_LOW] = float(batch.hash_high), float(batch.hash_low)
        on_device = {Lane.LOSS.value: loss}
        if self.env.rank == 0:
            on_device[Lane.GRAD_NORM.value] = grad_norm
        self._absorb(self.reduction.push(sums, facts, on_device=on_device))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean over the *global* batch; returns this rank's loss sum, on the device."""
        x_BT = torch.from_numpy(batch.x_BT).to(self.machine.device).long()
        y_BT = torch.from_numpy(batch.y_BT).to(self.machine.device).long()
        # DDP averages over ranks, so each rank divides by its share of the global batch
        scale = self.env.world_size / (self.job.train.global_batch * self.job.data.seq_len)
        micro = self.job.train.micro_batch
        return accumulate(self.model, x_BT, y_BT, machine=self.machine, micro=micro, scale=scale)

    def _absorb(self, landed: tuple[list[float], StepFacts] | None) -> None:
        """Take in the sums of the step before: its row, its beat, what ranks agreed on."""
        if landed is None:
            if self._row is None:
                self.run.beat(step=self.position.step, steps=self.job.train.steps)
            return
        sums, facts = landed
        self._halt = self._halt or sums[Lane.HALT] > 0
        self._save = self._save or sums[Lane.SAVE] > 0
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

    def _beat(self, row: StepRow) -> None:
        f = row.facts
        self.run.beat(
            step=f.step, steps=self.job.train.steps, loss=row.loss, lr=f.lr, grad_norm=row.grad_norm,
            toks_per_s=row.toks_per_s, step_time_s=f.step_time_s, dt_fetch_s=f.fetch.last_s,
            fetch_p50_s=f.fetch.p50_s, fetch_p95_s=f.fetch.p95_s, data_source=self.job.data.source,
            gpu_mem_alloc=torch.cuda.memory_allocated() / 2**20 if self.machine.cuda else None,
            gpu_mem_reserved=torch.cuda.memory_reserved() / 2**20 if self.machine.cuda else None,
        )  # fmt: skip

    def _next_save(self, wait_s: float | None = None) -> float | None:
        every_s = self.job.checkpoint.every_s
        return None if every_s is None else time.monotonic() + min(every_s, wait_s or every_s)

    def _checkpoint(self) -> bool:
        """Save the state after the current step, its row written first. False when it could not be saved."""
        self._absorb(self.reduction.drain())
        self.run.phase(Phase.CHECKPOINTING)
        began = time.perf_counter()
        state = trainer_state(self.position, self.bound, self.fingerprint)
        path = self.checkpointer.save(self.position.step, state, self.books.sync)
        self._save = False
        self._save_at = self._next_save(None if path else RETRY_SAVE_S)
        if path:
            print(f"checkpoint: {path.name} in {time.perf_counter() - began:.2f} s", flush=True)
        if self._row and not self._halt:
            self._beat(self._row)  # training again: the phase is over
        self._step_began = time.perf_counter()
        return path is not None

    def _save_surely(self) -> bool:
        for attempt in range(HALT_SAVE_TRIES):
            if attempt:
                time.sleep(HALT_SAVE_WAIT_S)
            if self._checkpoint():
                return True
        return False

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
        print(f"done: {self.position.step} steps", flush=True)
        loss = self._row.loss if self._row else None
        return self.run.done(self.position.step, steps=self.job.train.steps, loss=loss)
