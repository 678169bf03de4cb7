"""Write and read checkpoints: all ranks together, staged, hashed, fenced by the epoch, then renamed into being.

    room? -> staged directory -> every rank writes, fsyncs and hashes its files -> rank 0: trainer.json, rows synced,
    manifest, fsync, epoch check, rename, fsync of the parent, retention

A save that fails (a full disk, a vanished directory) leaves the older checkpoints as they were, removes what it had
staged and says why; it never raises into training. `load` trusts its caller to have verified the manifest
(`workloads.contract.manifest`). Called by the trainer, `save` again and again while it fails.

`save` stays until all is done. `begin` copies the state into host memory and leaves the same steps to a thread of its
own, whose collectives have the agreement's group to themselves; `collect` waits for it. One at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workloads.contract.files import atomic_write_json, dump_json, fsync_dir, read_json
from workloads.contract.manifest import FileEntry, Manifest, entry_of, read_manifest, verify
from workloads.contract.rundir import TRAINER_FILE, RunDir, step_of_checkpoint
from workloads.contract.trouble import Word
from workloads.runtime.agreement import Agreement
from workloads.runtime.background import Background
from workloads.runtime.fence import StaleEpochError, check_epoch
from workloads.runtime.hostmemory import available_bytes
from workloads.runtime.quarantine import Quarantine
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import Retention
from workloads.runtime.staging import Staged, drop_failed
from workloads.runtime.state import RankState

COPY_SHARE = 0.5
"""Of the host's memory that is available: what copies of the state may take."""
HASH_THREADS = 4
ROOM_SHARE, ROOM_BYTES = 1.02, 64 << 10
"""A checkpoint needs what the last one took, and a little more."""


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


Write = Callable[[Path], list[Path]]


@dataclass(frozen=True)
class Saved:
    """How a save in the background ended. `path` None: it failed, and that was told."""

    step: int
    path: Path | None
    blocked_s: float
    """for how long the caller was kept, the wait for a save before it not counted"""
    seconds: float
    """from there to the end, while training went on"""


@dataclass(frozen=True)
class _Flight:
    step: int
    blocked_s: float
    work: Background[Path | None]


class SaveError(Exception):
    """A stage failed on some rank; the text names rank and reason."""


class Checkpointer:
    """One a rank. `save` and `load` are collective: every rank calls them at the same step."""

    def __init__(
        self, env: RankEnv, agreement: Agreement, state: RankState, provenance: Provenance, retention: Retention
    ) -> None:
        self.env, self.agreement = env, agreement
        self._state, self._provenance, self._retention = state, provenance, retention
        self.quarantine = Quarantine(env.run, env.attempt)
        self._staged: Staged | None = None
        self._flight: _Flight | None = None
        self._failed = 0  # saves in a row
        self.history: list[dict[str, Any]] = []
        """where the run's line began elsewhere or its config changed, oldest first; kept in every trainer.json"""
        self.last: Path | None = None
        """the checkpoint that this attempt wrote or loaded last"""

    def save(
        self, step: int, trainer: Mapping[str, Any], before_commit: Callable[[], None] = lambda: None
    ) -> Path | None:
        """The new checkpoint, or None when it could not be written (the reason is on stderr and in trouble.jsonl).

        `before_commit` runs on rank 0; an OSError of its own fails the save like any other.
        Raises StaleEpochError on every rank when a newer attempt owns the run.
        """
        if self._flight is not None:
            raise RuntimeError("a save is under way: collect it first")
        return self._save(step, trainer, before_commit, self._state.write, self._size_bytes())

    def begin(self, step: int, trainer: Mapping[str, Any], before_commit: Callable[[], None] = lambda: None) -> None:
        """As `save`, of the state as it is now, in the background. `before_commit` runs in another thread."""
        if self._flight is not None:
            raise RuntimeError("a save is under way: collect it first")
        began = time.perf_counter()
        size_bytes = self._size_bytes()
        captured = self._state.capture()
        work = Background(partial(self._save, step, trainer, before_commit, captured.write, size_bytes))
        self._flight = _Flight(step, time.perf_counter() - began, work)

    @property
    def underway(self) -> int | None:
        """The step whose save was begun and not collected."""
        return self._flight.step if self._flight else None

    @property
    def finished(self) -> bool:
        """A save was begun, and nothing is left of it but to collect it."""
        return self._flight is not None and self._flight.work.done

    def collect(self) -> Saved | None:
        """Wait for the save that was begun; how it ended. None when there is none. Raises as `save`."""
        flight, self._flight = self._flight, None
        if flight is None:
            return None
        path = flight.work.result()
        return Saved(flight.step, path, flight.blocked_s, flight.work.seconds)

    def close(self, timeout_s: float) -> None:
        """Training ends, well or not: let a save that is under way end too, for so long."""
        if self._flight is not None and not self._flight.work.wait(timeout_s):
            print(f"warning: checkpoint of step {self._flight.step} is given up", file=sys.stderr, flush=True)

    def can_copy(self) -> str | None:
        """Why some rank must not hold a copy of its state in host memory; None: all can. Collective."""
        need, free = self._state.copy_bytes() * self.env.local_world_size, available_bytes()
        ok = free is None or need <= free * COPY_SHARE
        said = self.agreement.gather(None if ok else f"{need >> 20} MiB for copies, {(free or 0) >> 20} MiB available")
        return next((f"rank {rank}: {why}" for rank, why in enumerate(said) if why), None)

    def _save(
        self, step: int, trainer: Mapping[str, Any], before_commit: Callable[[], None], write: Write, size_bytes: int
    ) -> Path | None:
        if self.last is not None and step_of_checkpoint(self.last.name) == step:
            return self.last
        staged = self.env.run.staged_checkpoint(step, self.env.attempt)
        try:
            self._stage(lambda: self._begin(staged, size_bytes), only_rank0=True)
            files = self._stage(lambda: self._write(staged, trainer, write))
            self._stage(partial(self._commit, staged, step, files, before_commit), only_rank0=True)
        except SaveError as e:
            self._tell_failure(step, str(e))
            return None
        finally:
            if self._staged is not None:
                self._staged.drop()
                self._staged = None
        self.last = self.env.run.checkpoint(step)
        self._tell_success()
        self._prune()
        return self.last

    def load(self, path: Path) -> dict[str, Any]:
        """Put a verified checkpoint into model, optimizer and generators; returns its trainer state."""
        self._state.read(path)
        if path.parent == self.env.run.checkpoints:  # that of another run is not one of ours
            self.last = path
            self._retention.trust(path)
        return read_json(path / TRAINER_FILE)

    def _stage(self, work: Callable[[], tuple[FileEntry, ...]], *, only_rank0: bool = False) -> tuple[FileEntry, ...]:
        """Run `work` here (or on rank 0), tell each other, raise the same error everywhere."""
        outcome = _Outcome()
        if not only_rank0 or self.env.rank == 0:
            outcome = self._outcome(work)
        said = self.agreement.gather(outcome)
        for one in said:
            if one.newest_epoch is not None:
                raise StaleEpochError(self.env.epoch, one.newest_epoch)
        reasons = [one.why for one in said if one.why]
        if reasons:
            raise SaveError("; ".join(reasons))
        return tuple(f for one in said for f in one.files)

    def _outcome(self, work: Callable[[], tuple[FileEntry, ...]]) -> _Outcome:
        try:
            try:
                return _Outcome(files=work())
            except (OSError, ValueError) as e:
                check_epoch(self.env)  # a newer attempt takes staged directories away: that is no fault of the disk
                return _Outcome(why=f"rank {self.env.rank}: {e}")
        except StaleEpochError as e:
            return _Outcome(newest_epoch=e.newest)

    def _begin(self, staged: Path, size_bytes: int) -> tuple[FileEntry, ...]:
        drop_failed(self.env.run, self.env.attempt)
        self._staged = Staged(staged)
        need = int(size_bytes * ROOM_SHARE) + ROOM_BYTES
        free = self.quarantine.make_room(need)
        if free is not None and free < need:
            raise OSError(f"it needs {need / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are free")
        return ()

    def _size_bytes(self) -> int:
        """What the last checkpoint took, else what the state says."""
        manifest = read_manifest(self.last)[0] if self.last is not None else None
        return sum(f.size for f in manifest.files) if manifest else self._state.size_bytes()

    def _write(self, staged: Path, trainer: Mapping[str, Any], write: Write) -> tuple[FileEntry, ...]:
        mine = write(staged)
        if self.env.rank == 0:
            history = {"history": self.history} if self.history else {}
            atomic_write_json(staged / TRAINER_FILE, {**trainer, **history})
            mine = [*mine, staged / TRAINER_FILE]
        with ThreadPoolExecutor(max_workers=HASH_THREADS) as pool:
            return tuple(pool.map(entry_of, mine))

    def _commit(
        self, staged: Path, step: int, files: Iterable[FileEntry], before_commit: Callable[[], None]
    ) -> tuple[FileEntry, ...]:
        before_commit()
        env, said = self.env, self._provenance
        manifest = Manifest(
            run=env.run_id, step=step, attempt=env.attempt, epoch=env.epoch, world_size=env.world_size,
            config_hash=said.config_hash, code_hash=said.code_hash, versions=said.versions, files=tuple(files),
        )  # fmt: skip
        atomic_write_json(RunDir.manifest(staged), manifest.wire())  # fsyncs the staged directory too
        target = env.run.checkpoint(step)
        if not self._is_mine(target):  # else an earlier try came as far as the rename
            check_epoch(env)
            staged.rename(target)  # fails where a newer attempt has looked since: it takes staged directories away
        fsync_dir(target.parent)
        return ()

    def _is_mine(self, target: Path) -> bool:
        """True when this attempt made `target` and it verifies. Anything else of that name is put away."""
        if not target.is_symlink() and not target.exists():
            return False
        problems = verify(target, run_id=self.env.run_id)
        manifest = read_manifest(target)[0]
        if not problems and manifest is not None and manifest.epoch == self.env.epoch:
            return True
        check_epoch(self.env)
        why = "; ".join(problems) or "the run went on from an older one and has made this step again"
        if self.quarantine.put_away(target, why) is None:
            raise OSError(f"{target.name} is in the way")
        return False

    def _tell_failure(self, step: int, why: str) -> None:
        self._failed += 1
        print(f"warning: checkpoint of step {step} was not saved: {why}", file=sys.stderr, flush=True)
        if self.env.rank == 0 and self._failed == 1:
            self.quarantine.tell(Word.UNSAVED, self.env.run.checkpoint(step).name, why)

    def _tell_success(self) -> None:
        if self._failed and self.env.rank == 0 and self.last is not None:
            tries = "try" if self._failed == 1 else "tries"
            self.quarantine.tell(Word.SAVED_AGAIN, self.last.name, f"after {self._failed} {tries} that failed")
        self._failed = 0

    def _prune(self) -> None:
        if self.env.rank or self.last is None:
            return
        self._retention.trust(self.last)
        try:
            check_epoch(self.env)
            self._retention.prune(self.env.run, self.quarantine)
        except StaleEpochError:
            return  # what is too old is the newer attempt's to say; the next save raises
        except OSError as e:
            print(f"warning: old checkpoints were not removed: {e}", file=sys.stderr, flush=True)


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the fields that a resume must agree on."""
    import hashlib

    canonical = dump_json(dict(sorted(config.items())))
    return hashlib.sha256(canonical).hexdigest()
