"""A run directory, made under a staged name and renamed in one step. Called by `pods.remote.runs`.

Whoever dies before the rename leaves a `.tmp_` directory that no reader looks at; it is removed after a day.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pods.remote.code import materialize
from workloads.contract.errors import ConflictError, LocalError
from workloads.contract.files import atomic_write, atomic_write_json, fsync_dir
from workloads.contract.rundir import STAGED_PREFIX, OrchHome, RunDir

LEFTOVER_AGE_S = 86_400.0
_TAKEN = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


class Staged:
    def __init__(self, run: RunDir, home: OrchHome) -> None:
        self.run, self.home = run, home
        self.staged = RunDir(home.runs / f"{STAGED_PREFIX}{run.run_id}.{secrets.token_hex(4)}")

    def commit(
        self,
        run_json: Mapping[str, Any],
        resolved: Mapping[str, Any],
        diff: bytes,
        *,
        secrets: Mapping[str, str] | None = None,
        code: str | None = None,
    ) -> bool:
        """True when the run directory was made, False when it was there. LocalError leaves nothing behind.

        `code`: the id of a snapshot in this home's store, of which the run gets its own copy.
        """
        remove_leftovers(self.home, time.time())
        try:
            self._fill(run_json, resolved, diff, secrets or {}, code)
            return self._rename()
        except OSError as e:
            raise LocalError(
                "E-LAUNCH-003", f"the run directory cannot be made: {e.strerror}", where=str(self.run.path),
                fix="free some space, or point ORCH_HOME to another disk",
            ) from e  # fmt: skip
        finally:
            shutil.rmtree(self.staged.path, ignore_errors=True)

    def _fill(
        self,
        run_json: Mapping[str, Any],
        resolved: Mapping[str, Any],
        diff: bytes,
        secrets: Mapping[str, str],
        code: str | None,
    ) -> None:
        self.staged.path.mkdir(mode=0o700)
        for directory in self.staged.skeleton():
            directory.mkdir(mode=0o700)
        atomic_write_json(self.staged.resolved_config, resolved)
        if diff:
            atomic_write(self.staged.code_diff, diff)
        if secrets:
            atomic_write_json(self.staged.secrets, secrets)
        if code is not None:
            materialize(self.home, code, self.staged.code)
        atomic_write_json(self.staged.run_json, run_json)

    def _rename(self) -> bool:
        try:
            self.staged.path.rename(self.run.path)
        except OSError as e:
            if e.errno not in _TAKEN:
                raise
            if self.run.run_json.exists():
                return False
            raise ConflictError(
                "E-LAUNCH-004", "something that is no run lies where the run directory should be",
                where=str(self.run.path), fix="launch without --id, or move it away",
            ) from e  # fmt: skip
        fsync_dir(self.home.runs)
        return True


def ensure_home(home: OrchHome) -> None:
    """`$ORCH_HOME` and `runs/` below it, for their owner alone. LocalError when they cannot be made."""
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        home.runs.mkdir(exist_ok=True, mode=0o700)
        home.trees.mkdir(exist_ok=True, mode=0o700)
    except OSError as e:
        raise LocalError(
            "E-HOME-001", f"orch's home cannot be made: {e.strerror}", where=str(home.path),
            fix="point ORCH_HOME to a directory that you may write to",
        ) from e  # fmt: skip


def remove_leftovers(home: OrchHome, now: float) -> None:
    """Staged directories of launches that died, older than a day."""
    for path in home.runs.glob(f"{STAGED_PREFIX}*"):
        if _age_s(path, now) > LEFTOVER_AGE_S:
            shutil.rmtree(path, ignore_errors=True)


def _age_s(path: Path, now: float) -> float:
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0
