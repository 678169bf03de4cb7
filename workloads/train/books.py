"""What a run tells about its steps: training.csv, ledger.jsonl (rank 0) and the log line.

One line a step, in order, written whole or not at all: a line that a full disk cut is taken back and tried again with
the next one. On a resume rows after the checkpoint's step are moved to `training.a<n>.csv` and `ledger.a<n>.jsonl`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.files import atomic_write, write_all
from workloads.data.prefetch import FetchTimes
from workloads.runtime.rankenv import RankEnv

CSV_FIELDS = ("step", "loss", "lr", "toks_per_s", "grad_norm", "step_time_s", "dt_fetch_s")
CSV_HEADER = (",".join(CSV_FIELDS) + "\n").encode()
MAX_WAITING_LINES = 100_000


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

    def csv(self) -> bytes:
        f = self.facts
        floats = (self.loss, f.lr, self.toks_per_s, self.grad_norm, f.step_time_s, f.fetch.last_s)
        return (",".join([str(f.step), *(repr(x) for x in floats)]) + "\n").encode()

    def ledger(self, env: RankEnv) -> bytes:
        row = {
            "step": self.facts.step, "attempt": env.attempt, "world_size": env.world_size,
            "batch_hash": self.batch_hash, "loss": self.loss.hex(),
        }  # fmt: skip
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"

    def log(self) -> str:
        fetch = self.facts.fetch
        return (
            f"step {self.facts.step} | loss {self.loss:.4f} | toks/s {self.toks_per_s:.0f} | "
            f"fetch {fetch.last_s * 1e3:.1f}ms | fetch_p50 {fetch.p50_s * 1e3:.1f}ms | "
            f"fetch_p95 {fetch.p95_s * 1e3:.1f}ms"
        )


class RowFile:
    """Appends lines in order; what the disk refuses waits in memory and is written with a later line."""

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path = path
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING_LINES)
        self._warned = False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if header and os.fstat(self._fd).st_size == 0:
            self.write(header)

    def write(self, line: bytes) -> None:
        """Never raises OSError; says once that the disk refuses."""
        self._waiting.append(line)
        size = os.fstat(self._fd).st_size
        try:
            while self._waiting:
                write_all(self._fd, self._waiting[0])
                size += len(self._waiting.popleft())
            self._warned = False
        except OSError as e:
            os.ftruncate(self._fd, size)  # no torn line stays
            if not self._warned:
                print(f"warning: {self._path.name}: {e}; lines wait in memory", file=sys.stderr, flush=True)
            self._warned = True

    def sync(self) -> None:
        """Raises OSError when the disk fails or lines still wait: a checkpoint needs the rows before it."""
        if self._waiting:
            self.write(b"")
        if self._waiting:
            raise OSError(f"{self._path.name}: {len(self._waiting)} lines are not written")
        os.fsync(self._fd)


class Books:
    """Rank 0 writes files; every rank prints its log line."""

    def __init__(self, env: RankEnv, log_every: int, last_step: int) -> None:
        self._env, self._log_every, self._last_step = env, log_every, last_step
        self._csv = RowFile(env.run.training_csv, CSV_HEADER) if env.rank == 0 else None
        self._ledger = RowFile(env.run.ledger) if env.rank == 0 else None

    def note(self, row: StepRow) -> None:
        if self._csv and self._ledger:
            self._csv.write(row.csv())
            self._ledger.write(row.ledger(self._env))
        step = row.facts.step
        if step % self._log_every == 0 or step in (1, self._last_step):
            print(row.log(), flush=True)

    def sync(self) -> None:
        for file in (self._csv, self._ledger):
            if file:
                file.sync()


def _csv_step(line: bytes) -> int | None:
    first = line.split(b",", 1)[0]
    return int(first) if first.isdigit() else None


def _ledger_step(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int else None


def _cut(path: Path, archive: Path, keep: int, step_of: Callable[[bytes], int | None], header: bytes) -> int:
    """Move lines of steps above `keep`, and lines that are none, from `path` to the end of `archive`."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    good: list[bytes] = []
    gone: list[bytes] = []
    for line in lines:
        step = step_of(line) if line.endswith(b"\n") else None
        if line != header:
            (good if step is not None and step <= keep else gone).append(line)
    if not gone:
        return 0
    old = archive.read_bytes() if archive.exists() else header
    # the archive first: a crash in between repeats rows there and loses none
    atomic_write(archive, old + b"".join(x.rstrip(b"\n") + b"\n" for x in gone))
    atomic_write(path, header + b"".join(good))
    return len(gone)


def cut_after(env: RankEnv, step: int) -> None:
    """Rows after `step` belong to work that was lost: keep them apart. Rank 0, before `Books` is made."""
    before = max(0, env.attempt - 1)
    gone = _cut(env.run.training_csv, env.run.archived_csv(before), step, _csv_step, CSV_HEADER)
    _cut(env.run.ledger, env.run.archived_ledger(before), step, _ledger_step, b"")
    if gone:
        print(f"resume: {gone} rows after step {step} moved to {env.run.archived_csv(before).name}", flush=True)
