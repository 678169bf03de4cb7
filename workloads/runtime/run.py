"""`Run`: this rank's line to orch: heartbeats, the request to halt, its acknowledgement.

Outside orch every method does nothing. Heartbeats need the standard library only; `should_halt` uses torch.distributed
when it is initialised, and then every rank must call it at every step. Scripts of a user's own get a `ScriptRun`
(`workloads.runtime.script`) from `Run.from_env()`. Called by the ranks of every kind.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.contract.exitcodes import RankExit
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.haltfile import Halt, read_halt
from workloads.contract.jobchanges import job_of
from workloads.contract.records import HaltAck, as_wire
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase
from workloads.runtime import fence
from workloads.runtime.haltwatch import HaltWatch
from workloads.runtime.heartbeat import Heartbeat
from workloads.runtime.output import survive_full_disk
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction, distributed_world
from workloads.runtime.tb import EVAL_TAGS, TAGS, Board

if TYPE_CHECKING:
    from workloads.runtime.script import ScriptRun

WITH_STEPS = ("train", "command")
"""Kinds of runs whose beats are steps of a training."""


class Run:
    """This rank's line to orch. Make one a process, with `Run.from_env()`."""

    def __init__(self, env: RankEnv | None) -> None:
        self.env = env
        if env is not None:
            survive_full_disk()
        self._beats = Heartbeat(env) if env else None
        self._watch = HaltWatch(env) if env else None
        self._reduction: StepReduction[int] | None = None
        self._last_signals = (0.0, 0.0)
        shown = env is not None and env.rank == 0 and _shows_steps(env)
        self._board = Board(env.run.tensorboard, env.attempt) if env and shown else None
        self._told = -1

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ScriptRun:
        """Of a script: with rows, checkpoints and a resume."""
        from workloads.runtime.script import ScriptRun

        return ScriptRun(RankEnv.read(environ))

    def beat(self, step: int | None = None, **fields: object) -> None:
        """Tell that a step was made; fields as in the heartbeat contract (loss, lr, toks_per_s, ...).

        Costs microseconds; a line is written at most once a second.
        """
        if self._beats is None:
            return
        if step is not None and step > self._told and not TAGS.keys().isdisjoint(fields):
            self._told = step
            if self._board:
                self._board.note(step, fields)
        self._beats.beat(step, **fields)

    def show_evaluation(self, step: int, loss: float) -> None:
        """On TensorBoard's page; beats carry it as `eval_loss`."""
        if self._board:
            self._board.note(step, {"eval_loss": loss}, EVAL_TAGS)

    def phase(self, phase: Phase | str, **fields: object) -> None:
        """Tell what the rank does now: loading, compiling, evaluating, checkpointing, ..."""
        if self._beats:
            self._beats.phase(phase, **fields)

    def flush(self) -> None:
        """The steps are made: write the last beat, if it came too soon behind another to be written."""
        if self._beats:
            self._beats.flush()

    @property
    def asked_to_halt(self) -> bool:
        """What this rank alone has seen. To stop, use `should_halt`: ranks must stop at the same step."""
        return self._watch is not None and self._watch.flag

    @property
    def asked_at(self) -> float | None:
        """Monotonic seconds when this rank saw that it was asked to halt; None: it was not."""
        return self._watch.asked_at if self._watch else None

    @property
    def halt_is_urgent(self) -> bool:
        """True when `.HALT` says `now`: its clocks are short."""
        halt = read_halt(self.env.run) if self.env else None
        return isinstance(halt, Halt) and halt.now

    def handle_sigterm(self) -> None:
        """From now on SIGTERM asks for a halt (and dumps the stacks). `should_halt` does it at its first call."""
        if self._watch:
            self._watch.handle_sigterm()

    def should_halt(self, step: int) -> bool:
        """True on every rank at the same step, one step after any rank saw `.HALT` or got SIGTERM.

        Without an initialised process group each rank answers for itself, with the same lag.
        """
        return self._signals(step)[0]

    def _signals(self, step: int) -> tuple[bool, bool]:
        """(halt, save) as all ranks agree, one step late."""
        if self._watch is None or self.env is None:
            return False, False
        self._watch.handle_sigterm()
        mine = (float(self._watch.flag), float(self._is_due()))
        if distributed_world() == 1:
            answer, self._last_signals = self._last_signals, mine
        else:
            if self._reduction is None:
                self._reduction = StepReduction(2)
            before = self._reduction.push(mine, step)
            answer = (0.0, 0.0) if before is None else (before[0][0], before[0][1])
        return answer[0] > 0, answer[1] > 0

    def _is_due(self) -> bool:
        """Rank 0 of a script: is it time for a checkpoint?"""
        return False

    def check_epoch(self) -> None:
        """Raise SystemExit(76) when a newer attempt owns the run: call it before you commit a checkpoint."""
        if self.env is None:
            return
        try:
            fence.check_epoch(self.env)
        except fence.StaleEpochError as e:
            print(f"orch: {e}", file=sys.stderr, flush=True)
            raise SystemExit(int(RankExit.STALE_EPOCH)) from e

    def halted(self, step: int, *, checkpoint: str | Path | None = None) -> int:
        """Acknowledge the halt: where this rank stopped and what it left (None: nothing was saved). Returns 75."""
        if self.env is not None:
            name, digest = _checkpoint_facts(self.env.run, checkpoint)
            env = self.env
            ack = HaltAck(env.run_id, env.rank, env.attempt, step, time.time(), checkpoint=name, hash=digest)
            self.phase(Phase.HALTING, step=step)
            try:
                atomic_write_json(env.run.halt_ack(env.rank), as_wire(ack))
            except OSError as e:
                print(f"orch: the halt could not be acknowledged: {e}", file=sys.stderr, flush=True)
        self._close()
        return int(RankExit.CHECKPOINTED)

    def done(self, step: int | None = None, **fields: object) -> int:
        """The work is finished: the last beat, with what is known of the last step. Returns 0."""
        self.flush()
        self.phase(Phase.DONE, step=step, **fields)
        self._close()
        return int(RankExit.DONE)

    def _close(self) -> None:
        if self._reduction is not None:
            self._reduction.drain()
        if self._beats:
            self._beats.close()
        if self._board:
            self._board.close()


def _shows_steps(env: RankEnv) -> bool:
    """Is it a training, and one whose steps TensorBoard shall show?"""
    info = try_read_json(env.run.run_json) or {}
    job = job_of(env.run, env.attempt, info)
    train = job.get("train") if isinstance(job, dict) else None
    asked = train.get("tensorboard", True) if isinstance(train, dict) else True
    return info.get("kind", "train") in WITH_STEPS and asked is not False


def _checkpoint_facts(run: RunDir, checkpoint: str | Path | None) -> tuple[str | None, str | None]:
    """(name below checkpoints/ or the path itself, sha256 of its manifest or of the file)."""
    if checkpoint is None:
        return None, None
    path = Path(checkpoint)
    inside = path.is_absolute() and path.is_relative_to(run.checkpoints)
    name = str(path.relative_to(run.checkpoints)) if inside else str(path)
    try:
        with (run.manifest(path) if path.is_dir() else path).open("rb") as f:
            return name, hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return name, None
