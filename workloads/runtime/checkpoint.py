"""Write and read checkpoints: all ranks together, staged, hashed, fenced by the epoch, then renamed into being.

    staged directory -> tensors (torch.distributed.checkpoint) -> rng_rank<k>.json, trainer.json -> every rank hashes
    what it wrote -> rank 0: rows synced, manifest, fsync, epoch check, rename, fsync of the parent, retention

A save that fails (a full disk, a vanished directory) leaves the older checkpoints as they were, removes what it had
staged and says why; it never raises into training. `load` trusts its caller to have verified the manifest
(`workloads.runtime.manifest.newest_verified`): DCP's own metadata is a pickle. Synchronous. Called by the trainer.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.contract.files import atomic_write_json, dump_json, fsync_dir, read_json
from workloads.contract.rundir import RunDir, step_of_checkpoint
from workloads.runtime import rng
from workloads.runtime.agreement import Agreement
from workloads.runtime.fence import StaleEpochError, check_epoch
from workloads.runtime.manifest import FileEntry, Manifest, entry_of
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import Retention

if TYPE_CHECKING:
    import torch

TRAINER_FILE = "trainer.json"


def _rng_file(rank: int) -> str:
    return f"rng_rank{rank}.json"


@dataclass(frozen=True)
class Provenance:
    """What a manifest says about where its bytes come from."""

    config_hash: str
    code_hash: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class _Outcome:
    """How a stage went on one rank."""

    why: str | None = None  # None: well
    files: tuple[FileEntry, ...] = ()
    newest_epoch: int | None = None  # a newer attempt owns the run


class SaveError(Exception):
    """A stage failed on some rank; the text names rank and reason."""


class Checkpointer:
    """One a rank. `save` and `load` are collective: every rank calls them at the same step."""

    def __init__(
        self,
        env: RankEnv,
        agreement: Agreement,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        provenance: Provenance,
        retention: Retention,
    ) -> None:
        self._env, self._agreement = env, agreement
        self._model, self._optimizer = model, optimizer
        self._provenance, self._retention = provenance, retention
        self.last: Path | None = None
        """the checkpoint that this attempt wrote or loaded last"""

    def save(
        self, step: int, trainer: Mapping[str, Any], before_commit: Callable[[], None] = lambda: None
    ) -> Path | None:
        """The new checkpoint, or None when it could not be written (the reason is on stderr).

        `before_commit` runs on rank 0; an OSError of its own fails the save like any other.
        Raises StaleEpochError on every rank when a newer attempt owns the run.
        """
        if self.last is not None and step_of_checkpoint(self.last.name) == step:
            return self.last
        staged = self._env.run.staged_checkpoint(step, self._env.attempt)
        try:
            self._stage(lambda: self._make(staged), only_rank0=True)
            self._stage(lambda: self._write_tensors(staged))
            files = self._stage(lambda: self._write_rest(staged, trainer))
            self._stage(partial(self._commit, staged, step, files, before_commit), only_rank0=True)
        except SaveError as e:
            print(f"warning: checkpoint of step {step} was not saved: {e}", file=sys.stderr, flush=True)
            self._discard(staged)
            return None
        except StaleEpochError:
            self._discard(staged)
            raise
        self.last = self._env.run.checkpoint(step)
        self._prune()
        return self.last

    def load(self, path: Path) -> dict[str, Any]:
        """Put a verified checkpoint into model, optimizer and generators; returns its trainer state."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict import set_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        state = self._tensors()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "torch.distributed is unavailable": one rank without a process group
            load(state, storage_reader=FileSystemReader(path), process_group=self._agreement.group)
        set_state_dict(
            self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        own = path / _rng_file(self._env.rank)
        if own.exists():  # a world that grew: new ranks keep the state they were seeded with
            rng.restore(read_json(own))
        self.last = path
        self._retention.trust(path.name)
        return read_json(path / TRAINER_FILE)

    def _tensors(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optimizer": optimizer}

    def _stage(self, work: Callable[[], tuple[FileEntry, ...]], *, only_rank0: bool = False) -> tuple[FileEntry, ...]:
        """Run `work` here (or on rank 0), tell each other, raise the same error everywhere."""
        outcome = _Outcome()
        if not only_rank0 or self._env.rank == 0:
            try:
                outcome = _Outcome(files=work())
            except (OSError, ValueError) as e:
                outcome = _Outcome(why=f"rank {self._env.rank}: {e}")
            except StaleEpochError as e:
                outcome = _Outcome(newest_epoch=e.newest)
        said = self._agreement.gather(outcome)
        for one in said:
            if one.newest_epoch is not None:
                raise StaleEpochError(self._env.epoch, one.newest_epoch)
        reasons = [one.why for one in said if one.why]
        if reasons:
            raise SaveError("; ".join(reasons))
        return tuple(f for one in said for f in one.files)

    def _make(self, staged: Path) -> tuple[FileEntry, ...]:
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir(parents=True, mode=0o700)
        return ()

    def _write_tensors(self, staged: Path) -> tuple[FileEntry, ...]:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                save(
                    self._tensors(),
                    storage_writer=FileSystemWriter(staged, sync_files=True),
                    process_group=self._agreement.group,
                )
        except CheckpointException as e:  # a BaseException, raised on every rank whoever failed
            failures = {rank: exc for rank, (exc, _) in e.failures.items()}
            raise OSError(", ".join(f"writing on rank {r} failed: {exc}" for r, exc in failures.items())) from e
        except RuntimeError as e:
            if "inline_container" in str(e):  # torch's zip writer meets a full disk
                raise OSError(str(e).splitlines()[0]) from e
            raise
        return ()

    def _write_rest(self, staged: Path, trainer: Mapping[str, Any]) -> tuple[FileEntry, ...]:
        rank = self._env.rank
        atomic_write_json(staged / _rng_file(rank), rng.capture())
        mine = [staged / _rng_file(rank), *staged.glob(f"__{rank}_*")]
        if rank == 0:
            atomic_write_json(staged / TRAINER_FILE, trainer)
            mine += [staged / TRAINER_FILE, staged / ".metadata"]
        return tuple(entry_of(path) for path in mine)

    def _commit(
        self, staged: Path, step: int, files: Iterable[FileEntry], before_commit: Callable[[], None]
    ) -> tuple[FileEntry, ...]:
        before_commit()
        env, said = self._env, self._provenance
        manifest = Manifest(
            run=env.run_id, step=step, attempt=env.attempt, epoch=env.epoch, world_size=env.world_size,
            config_hash=said.config_hash, code_hash=said.code_hash, versions=said.versions, files=tuple(files),
        )  # fmt: skip
        atomic_write_json(RunDir.manifest(staged), manifest.wire())  # fsyncs the staged directory too
        target = env.run.checkpoint(step)
        check_epoch(env)
        if target.exists():  # only a damaged one can be there: a good one would have been resumed from
            target.rename(env.run.rejected_checkpoint(step, env.attempt))
        staged.rename(target)
        fsync_dir(target.parent)
        return ()

    def _discard(self, staged: Path) -> None:
        if self._env.rank == 0:
            shutil.rmtree(staged, ignore_errors=True)

    def _prune(self) -> None:
        if self._env.rank or self.last is None:
            return
        self._retention.trust(self.last.name)
        try:
            self._retention.prune(self._env.run)
        except OSError as e:
            print(f"warning: old checkpoints were not removed: {e}", file=sys.stderr, flush=True)


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the fields that a resume must agree on."""
    import hashlib

    canonical = dump_json(dict(sorted(config.items())))
    return hashlib.sha256(canonical).hexdigest()
