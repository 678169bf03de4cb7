"""`ScriptRun`: the few lines that give any training script heartbeats, rows, checkpoints, a halt and a resume.

    from workloads.runtime import Run

    run = Run.from_env()
    start = run.resume(model=model, optimizer=optimizer)     # steps that are done: 0, or those of the newest checkpoint
    for step in range(start, steps):
        ...
        run.step(step + 1, loss=loss.item())                 # saves when it is due; ends the process when asked to halt

`resume` takes what has `state_dict` and `load_state_dict`, and the random generators with them; the job's `checkpoint:`
says how often it is saved. A script that saves by itself uses `beat`, `should_halt`, `halted` and `latest_checkpoint`:

    if run.should_halt(step):
        save(path)
        raise SystemExit(run.halted(step, checkpoint=path))

Outside orch every method does nothing (`resume` is 0, `should_halt` is False), so that the script runs unchanged.
Heartbeats and rows need the standard library only; `step` and `should_halt` use torch.distributed when the script has
initialised it, and then every rank must call them at every step.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.contract.errors import OrchError
from workloads.contract.exitcodes import RankExit
from workloads.contract.manifest import newest_verified
from workloads.contract.states import Phase
from workloads.runtime import fence
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.rows import host_number
from workloads.runtime.run import Run
from workloads.runtime.scriptrows import ScriptRows

if TYPE_CHECKING:
    from workloads.runtime.agreement import Agreement
    from workloads.runtime.scriptsaver import ScriptSaver
    from workloads.runtime.scriptstate import Stateful
    from workloads.runtime.state import RankState


class ScriptRun(Run):
    """A `Run` that keeps the books and the checkpoints of a script. Made by `Run.from_env()`."""

    def __init__(self, env: RankEnv | None) -> None:
        super().__init__(env)
        self._saver: ScriptSaver | None = None
        self._rows = ScriptRows(env) if env is not None and env.rank == 0 else None
        self._told_at = time.monotonic()

    def beat(self, step: int | None = None, **fields: object) -> None:
        """Tell that a step was made; fields as in the heartbeat contract (loss, lr, toks_per_s, ...).

        Costs microseconds; a beat is written at most once a second. A step whose loss is a number of the host
        (`loss.item()`) is a row of training.csv too, with the time since the step before; `tokens`, those of all ranks
        in this step, gives tokens/s.
        """
        if self._rows is not None and step is not None and step > self._told:
            fields = self._timed(step, fields)
            self._rows.note(step, fields)
        fields.pop("tokens", None)
        super().beat(step, **fields)

    def _timed(self, step: int, fields: dict[str, object]) -> dict[str, object]:
        now = time.monotonic()
        steps = step - self._told if self._told >= 0 else 1
        step_time_s, self._told_at = (now - self._told_at) / steps, now
        tokens = host_number(fields.get("tokens"))
        rate = {"toks_per_s": tokens / step_time_s} if tokens is not None and step_time_s > 0 else {}
        return {"step_time_s": step_time_s, **rate, **fields}

    def resume(self, **objects: Stateful) -> int:
        """Put the newest checkpoint that verifies into `objects` and the random generators; how many steps it has.

        0 without one. Every rank calls it, after its process group was made and its objects lie where they train.
        From now on `step` saves them. Ends the process with 77 when checkpoints are there and none verifies.
        """
        if self.env is None:
            return 0
        from workloads.runtime.agreement import Agreement
        from workloads.runtime.scriptstate import ObjectsState

        agreement = Agreement()
        return self._resume(agreement, ObjectsState(self.env.rank, agreement, objects))

    def resume_with(self, save: Callable[[Path], object], load: Callable[[Path], object]) -> int:
        """As `resume`, for a trainer that fills a folder itself: `save(folder)` and `load(folder)`, on every rank."""
        if self.env is None:
            return 0
        from workloads.runtime.agreement import Agreement
        from workloads.runtime.scriptstate import FolderState

        agreement = Agreement()
        return self._resume(agreement, FolderState(self.env.rank, agreement, save, load))

    def _resume(self, agreement: Agreement, state: RankState) -> int:
        from workloads.runtime.scriptsaver import ScriptSaver

        assert self.env is not None
        self.phase(Phase.LOADING)
        with self._refusals():
            self._saver = ScriptSaver(self.env, agreement, state)
            step = self._saver.restore()
        if self._rows:
            self._rows.cut(step)
        self.starts_at(step)
        return step

    def starts_at(self, step: int) -> None:
        """Steps up to this one are done; the clock of the next one runs from now."""
        self._told, self._told_at = step, time.monotonic()

    @property
    def is_begun(self) -> bool:
        """Whether this process has looked for a checkpoint, and saves from now on."""
        return self._saver is not None

    @property
    def found(self) -> Path | None:
        """The checkpoint that was saved or loaded last."""
        return self._saver.last if self._saver is not None else None

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What no restart mends ends the process as orch knows it, with a block that says why."""
        try:
            yield
        except OrchError as e:
            print(e.render(), file=sys.stderr, flush=True)
            raise SystemExit(int(RankExit.REFUSED)) from e
        except fence.StaleEpochError as e:
            print(f"orch: {e}", file=sys.stderr, flush=True)
            raise SystemExit(int(RankExit.STALE_EPOCH)) from e

    def step(self, step: int, **fields: object) -> None:
        """Step number `step` (the first is 1) is done: `beat`, and a checkpoint when one is due.

        When all ranks agree that the run is to halt: a checkpoint, the acknowledgement, and SystemExit(75).
        """
        self.beat(step, **fields)
        if self.env is None:
            return
        halt, due = self._signals(step)
        if halt:
            raise SystemExit(self.halted(step, checkpoint=self.save(step, surely=True)))
        if due or (self._saver is not None and self._saver.due_at(step)):
            self.save(step)

    def save(self, step: int, *, surely: bool = False) -> Path | None:
        """A checkpoint of what `resume` was given, now; every rank calls it. None when it could not be written.

        `surely`: it is tried again for some seconds.
        """
        if self._saver is None:
            return None
        self.phase(Phase.CHECKPOINTING, step=step)
        began = time.monotonic()
        with self._refusals():
            path = self._saver.save_surely(step) if surely else self._saver.save(step)
        self._told_at += time.monotonic() - began  # no part of the next step
        self.phase(Phase.PROGRESS, step=step)
        return path

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint of the run that verifies, read from the disk now; None without one.

        Only this rank looks, and nothing is put away: with several ranks `resume` has all of them load the same.
        """
        if self.env is None:
            return None
        return newest_verified(self.env.run, run_id=self.env.run_id)[0]

    def _is_due(self) -> bool:
        return self._saver is not None and self._saver.due(time.monotonic())
