"""training.csv of a script of a user's own: a row for each step whose loss the host knows. Rank 0 alone.

Columns are those that the first row has, in the order of the contract; what a later row lacks is `nan`. A tensor on a
device is no row: to read it would make the step wait. The first row of an attempt moves rows of the same or later steps
to training.a<n>.csv. Never raises for a disk. Standard library only. Called by `Run`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from workloads.runtime.rankenv import RankEnv
from workloads.runtime.rows import RowFile, csv_step, cut, host_number
from workloads.runtime.scriptenv import write_env

COLUMNS = ("loss", "lr", "toks_per_s", "grad_norm", "step_time_s", "dt_fetch_s")


class ScriptRows:
    def __init__(self, env: RankEnv) -> None:
        self._env = env
        self._file: RowFile | None = None
        self._columns: tuple[str, ...] = ()
        self._last = -1
        self._off = False

    def cut(self, step: int) -> None:
        """Rows after `step` are of work that was lost."""
        run = self._env.run
        header = _header(self._env)
        try:
            gone = cut(run.training_csv, run.archived_csv(max(0, self._env.attempt - 1)), step, csv_step, header)
        except OSError as e:
            print(f"warning: {run.training_csv.name}: {e}", file=sys.stderr, flush=True)
            return
        if gone:
            print(f"resume: {gone} rows after step {step} moved aside", flush=True)

    def note(self, step: int, fields: Mapping[str, object]) -> None:
        """A row, when the loss is known here and the step is a new one."""
        loss = host_number(fields.get("loss"))
        if loss is None or step <= self._last or self._off:
            return
        known = {name: x for name in COLUMNS if (x := host_number(fields.get(name))) is not None}
        if self._file is None and not self._open(step, tuple(known)):
            return
        assert self._file is not None
        self._last = step
        cells = (repr(known.get(name, float("nan"))) for name in self._columns)
        self._file.write((",".join([str(step), *cells]) + "\n").encode())

    def _open(self, step: int, columns: tuple[str, ...]) -> bool:
        self.cut(step - 1)
        write_env(self._env)
        there = _header(self._env).decode(errors="replace").strip().split(",")
        self._columns = tuple(there[1:]) if there[0] == "step" else columns
        try:
            self._file = RowFile(self._env.run.training_csv, (",".join(("step", *self._columns)) + "\n").encode())
        except OSError as e:
            print(f"warning: {self._env.run.training_csv.name} is not written: {e}", file=sys.stderr, flush=True)
            self._off = True
        return self._file is not None


def _header(env: RankEnv) -> bytes:
    """The first line of training.csv; b"" where there is none."""
    try:
        with env.run.training_csv.open("rb") as f:
            line = f.readline(4096)
    except OSError:
        return b""
    return line if line.startswith(b"step,") and line.endswith(b"\n") else b""
