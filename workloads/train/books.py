"""What a run tells about its steps: training.csv, ledger.jsonl (rank 0) and the log line.

One line a step, in order, written whole or not at all: a line that a full disk cut is taken back and tried again with
the next one. On a resume rows after the checkpoint's step are moved to `training.a<n>.csv` and `ledger.a<n>.jsonl`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from workloads.contract.files import read_tail
from workloads.data.prefetch import FetchTimes
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.rows import RowFile, csv_step, cut, ledger_step

CSV_FIELDS = ("step", "loss", "lr", "toks_per_s", "grad_norm", "step_time_s", "dt_fetch_s")
CSV_HEADER = (",".join(CSV_FIELDS) + "\n").encode()


@dataclass(frozen=True)
class StepFacts:
    """What is known of a step when it ends, before its sums are in."""

    step: int
    lr: float
    step_time_s: float
    fetch: FetchTimes


@dataclass(frozen=True)
class StepRow:
    """A finished step, with sums over all ranks."""

    facts: StepFacts
    loss: float  # mean over the tokens of the global batch
    grad_norm: float
    toks_per_s: float
    batch_hash: str

    @property
    def skipped(self) -> bool:
        """Its gradients were no finite numbers: weights and optimizer are as they were before it."""
        return not math.isfinite(self.grad_norm)

    def csv(self) -> bytes:
        f = self.facts
        floats = (self.loss, f.lr, self.toks_per_s, self.grad_norm, f.step_time_s, f.fetch.last_s)
        return (",".join([str(f.step), *(repr(x) for x in floats)]) + "\n").encode()

    def ledger(self, env: RankEnv) -> bytes:
        row = {
            "step": self.facts.step, "attempt": env.attempt, "world_size": env.world_size,
            "batch_hash": self.batch_hash, "loss": self.loss.hex(),
            **({"skipped": True} if self.skipped else {}),
        }  # fmt: skip
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"

    def log(self) -> str:
        fetch = self.facts.fetch
        return (
            f"step {self.facts.step} | loss {self.loss:.4f} | toks/s {self.toks_per_s:.0f} | "
            f"fetch {fetch.last_s * 1e3:.1f}ms | fetch_p50 {fetch.p50_s * 1e3:.1f}ms | "
            f"fetch_p95 {fetch.p95_s * 1e3:.1f}ms"
        )


@dataclass(frozen=True)
class Evaluated:
    """The loss on text that is not trained on, after a step."""

    step: int
    loss: float  # mean over the tokens
    samples: int
    tokens: int
    seconds: float

    def line(self, env: RankEnv) -> bytes:
        row = {
            "v": 1, "step": self.step, "attempt": env.attempt, "world_size": env.world_size, "loss": self.loss,
            "samples": self.samples, "tokens": self.tokens, "seconds": round(self.seconds, 3),
        }  # fmt: skip
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"

    def log(self) -> str:
        return f"step {self.step} | held-out loss {self.loss:.4f} | {self.samples} samples in {self.seconds:.1f} s"


def newest_evaluation(env: RankEnv) -> tuple[int, float] | None:
    """(step, loss) of the last line of eval.jsonl; None without one."""
    lines = read_tail(env.run.evaluations, 4096).split(b"\n")[:-1]
    step = ledger_step(lines[-1]) if lines else None
    return None if step is None else (step, float(json.loads(lines[-1])["loss"]))


class Books:
    """Rank 0 writes files; every rank prints its log line."""

    def __init__(self, env: RankEnv, log_every: int, last_step: int, *, evaluates: bool = False) -> None:
        self._env, self._log_every, self._last_step = env, log_every, last_step
        self._csv = RowFile(env.run.training_csv, CSV_HEADER) if env.rank == 0 else None
        self._ledger = RowFile(env.run.ledger) if env.rank == 0 else None
        self._evaluations = RowFile(env.run.evaluations) if env.rank == 0 and evaluates else None

    def note(self, row: StepRow) -> None:
        if self._csv and self._ledger:
            self._csv.write(row.csv())
            self._ledger.write(row.ledger(self._env))
        step = row.facts.step
        if step % self._log_every == 0 or step in (1, self._last_step):
            print(row.log(), flush=True)

    def note_evaluation(self, row: Evaluated) -> None:
        if self._evaluations:
            self._evaluations.write(row.line(self._env))
        print(row.log(), flush=True)

    def sync(self) -> None:
        for file in (self._csv, self._ledger, self._evaluations):
            if file:
                file.sync()


def cut_after(env: RankEnv, step: int) -> None:
    """Rows after `step` belong to work that was lost: keep them apart. Rank 0, before `Books` is made."""
    before = max(0, env.attempt - 1)
    gone = cut(env.run.training_csv, env.run.archived_csv(before), step, csv_step, CSV_HEADER)
    cut(env.run.ledger, env.run.archived_ledger(before), step, ledger_step)
    cut(env.run.evaluations, env.run.archived_evaluations(before), step, ledger_step)
    if gone:
        print(f"resume: {gone} rows after step {step} moved to {env.run.archived_csv(before).name}", flush=True)
