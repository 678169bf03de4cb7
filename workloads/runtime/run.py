"""`Run`: the few lines that give any training script heartbeats and a graceful halt.

    from workloads.runtime import Run

    run = Run.from_env()
    for step in range(start, steps):
        ...
        run.beat(step=step, loss=loss)
        if run.should_halt(step):
            save(path)
            raise SystemExit(run.halted(step, checkpoint=path))
    run.done()

Outside orch every method does nothing (`should_halt` is False), so that the script runs unchanged. Heartbeats need
the standard library only; `should_halt` uses torch.distributed when the script has initialised it, and then every rank
must call it at every step.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from workloads.contract.exitcodes import RankExit
from workloads.contract.files import atomic_write_json
from workloads.contract.records import HaltAck, as_wire
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase
from workloads.runtime import fence
from workloads.runtime.haltwatch import HaltWatch
from workloads.runtime.heartbeat import Heartbeat
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction, distributed_world


class Run:
    """This rank's line to orch. Make one a process, with `Run.from_env()`."""

    def __init__(self, env: RankEnv | None) -> None:
        self.env = env
        self._beats = Heartbeat(env) if env else None
        self._watch = HaltWatch(env) if env else None
        self._reduction: StepReduction[int] | None = None
        self._last_flag = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Run:
        return cls(RankEnv.read(environ))

    def beat(self, step: int | None = None, **fields: object) -> None:
        """Tell that a step was made; fields as in the heartbeat contract (loss, lr, toks_per_s, ...).

        Costs microseconds; a line is written at most once a second.
        """
        if self._beats:
            self._beats.beat(step, **fields)

    def phase(self, phase: Phase | str, **fields: object) -> None:
        """Tell what the rank does now: loading, compiling, evaluating, checkpointing, ..."""
        if self._beats:
            self._beats.phase(phase, **fields)

    @property
    def asked_to_halt(self) -> bool:
        """What this rank alone has seen. To stop, use `should_halt`: ranks must stop at the same step."""
        return self._watch is not None and self._watch.flag

    def handle_sigterm(self) -> None:
        """From now on SIGTERM asks for a halt (and dumps the stacks). `should_halt` does it at its first call."""
        if self._watch:
            self._watch.handle_sigterm()

    def should_halt(self, step: int) -> bool:
        """True on every rank at the same step, one step after any rank saw `.HALT` or got SIGTERM.

        Without an initialised process group each rank answers for itself, with the same lag.
        """
        if self._watch is None:
            return False
        self._watch.handle_sigterm()
        mine = self._watch.flag
        if distributed_world() == 1:
            answer, self._last_flag = self._last_flag, mine
            return answer
        if self._reduction is None:
            self._reduction = StepReduction(1)
        before = self._reduction.push([float(mine)], step)
        return before is not None and before[0][0] > 0

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
        self.phase(Phase.DONE, step=step, **fields)
        self._close()
        return int(RankExit.DONE)

    def _close(self) -> None:
        if self._reduction is not None:
            self._reduction.drain()
        if self._beats:
            self._beats.close()


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
