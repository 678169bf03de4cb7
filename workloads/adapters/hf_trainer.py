"""Heartbeats, rows, checkpoints, a halt and a resume for a script with Hugging Face `transformers.Trainer`.

    from workloads.adapters.hf_trainer import OrchCallback, latest_checkpoint

    trainer = Trainer(..., callbacks=[OrchCallback()])
    trainer.train(resume_from_checkpoint=latest_checkpoint())

The Trainer saves where and when its arguments say (`save_steps`), and when the run is to halt; each of its checkpoints
is copied into the run's directory, hashed and verified as those of orch: a resume starts from the newest that verifies,
whatever became of the others. They are no links: the Trainer writes a step that it saves again into the same files, and
both copies take space. The loss is told at `logging_steps`, with `include_num_input_tokens_seen` the tokens/s of its
step too. A halt ends the process with exit code 75 once the Trainer has saved. Outside orch nothing happens, and
`latest_checkpoint()` is None. Called by scripts.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from workloads.contract.states import Phase
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.script import ScriptRun


class _Kept(ScriptRun):
    """A run whose checkpoints are those that the Trainer has just written."""

    def __init__(self) -> None:
        super().__init__(RankEnv.read())
        self.source: Path | None = None

    def keep(self, source: Path, step: int, *, surely: bool) -> Path | None:
        self.source = source
        return self.save(step, surely=surely)

    def fill(self, folder: Path) -> None:
        """Rank 0: a copy of the Trainer's files. OSError when there is a folder among them."""
        if self.source is None or self.env is None or self.env.rank:
            return
        for entry in os.scandir(self.source):
            if not entry.is_file(follow_symlinks=True):
                raise OSError(f"{entry.name} is a folder, and a checkpoint holds plain files")
            shutil.copyfile(entry.path, folder / entry.name)


_run: _Kept | None = None


def _the_run() -> _Kept:
    global _run
    if _run is None:
        _run = _Kept()
    return _run


class OrchCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # transformers is not typed everywhere
    """One a process, given to `Trainer(callbacks=[...])`."""

    def __init__(self) -> None:
        self._run = _the_run()
        self._halting = False
        self._seen = 0
        """tokens behind the last step"""
        self._tokens: int | None = None
        """those of the last step; None where the Trainer does not count them"""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _begin(self._run)
        self._run.starts_at(state.global_step)
        self._seen = int(state.num_input_tokens_seen or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, seen = int(state.global_step), int(state.num_input_tokens_seen or 0)
        self._tokens, self._seen = (seen - self._seen) or None, seen
        if not control.should_log:
            self._run.beat(step, steps=state.max_steps or None, tokens=self._tokens)
        if self._run.should_halt(step):
            self._halting = control.should_save = True
        if control.should_evaluate:
            self._run.phase(Phase.EVALUATING, step=step)
        elif control.should_save:
            self._run.phase(Phase.CHECKPOINTING, step=step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self._run.beat(
            int(state.global_step), steps=state.max_steps or None, loss=logs["loss"], lr=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"), tokens=self._tokens,
        )  # fmt: skip

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.flush()
        self._run.phase(Phase.EVALUATING, step=int(state.global_step))  # what the script does now has other limits

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = int(state.global_step)
        source = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        path = self._run.keep(source, step, surely=self._halting)
        if self._halting:
            raise SystemExit(self._run.halted(step, checkpoint=path or source))


def latest_checkpoint() -> str | None:
    """What `trainer.train(resume_from_checkpoint=...)` is given: the newest that verifies; None for a first start.

    Every rank calls it, once the Trainer was made.
    """
    run = _the_run()
    _begin(run)
    return None if run.found is None else str(run.found)


def _begin(run: _Kept) -> None:
    if run.env is not None and not run.is_begun:
        run.resume_with(run.fill, lambda folder: None)
