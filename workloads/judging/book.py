"""The rows of a parity or bench run: appended case by case, and read again when it goes on. They are its checkpoint.

Rows count only beside the basis they were made with (code, environment, seed): with another one they are moved aside
and every case is judged anew. Called by the loops of both kinds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.contract.files import LineWriter, atomic_write_json, dump_json, read_bytes_bounded, try_read_json
from workloads.contract.rundir import RunDir
from workloads.runtime.rankenv import RankEnv

Row = dict[str, Any]
Key = tuple[str, str]
"""(suite, id of the case)"""
MAX_ROWS_BYTES = 256 << 20
OURS = frozenset({"halt-term", "halt-kill", "stopped"})


@dataclass(frozen=True)
class Files:
    """Where a kind keeps what; `aside`: the rows that count no more. `case`: what it calls one of them."""

    rows: Path
    basis: Path
    current: Path
    aside: Path
    case: str

    @classmethod
    def of_parity(cls, run: RunDir, attempt: int) -> Files:
        return cls(run.parity_rows, run.parity_basis, run.parity_cell, run.archived_parity_rows(attempt), "cell")

    @classmethod
    def of_bench(cls, run: RunDir, attempt: int) -> Files:
        return cls(run.bench_rows, run.bench_basis, run.bench_case, run.archived_bench_rows(attempt), "case")


@dataclass(frozen=True)
class Suspect:
    """The case in which earlier attempts died, and how often."""

    key: Key
    deaths: int


class Book:
    """OSError when the run directory cannot be written."""

    DEATHS = 2  # so many attempts may die in a case before it is told wrong

    def __init__(self, env: RankEnv, files: Files, basis: Mapping[str, Any]) -> None:
        self.files, self._env = files, env
        if try_read_json(files.basis) != dict(basis):
            self._set_aside()
            atomic_write_json(files.basis, basis)
        self.rows = read_rows(files.rows)
        self.suspect = self._suspect()
        self._writer = LineWriter(files.rows)

    def _set_aside(self) -> None:
        f = self.files
        with contextlib.suppress(FileNotFoundError):
            f.rows.replace(f.aside)
            print(f"the rows so far were made with other code or elsewhere: every {f.case} is judged again", flush=True)
        f.current.unlink(missing_ok=True)

    def _suspect(self) -> Suspect | None:
        """Who died, died in the case that was begun and has no row; who was stopped by orch did not."""
        row = try_read_json(self.files.current)
        if row is None or not isinstance(row.get("attempt"), int):
            return None
        key = (str(row.get("suite")), str(row.get("case")))
        record = try_read_json(self._env.run.rank_record(row["attempt"], self._env.rank)) or {}
        died = row["attempt"] < self._env.attempt and record.get("cause") not in OURS
        deaths = int(row.get("deaths", 0)) + died
        return None if key in self.rows or not deaths else Suspect(key, deaths)

    def keep(self, keys: Collection[Key]) -> None:
        """Only rows of these cases count."""
        self.rows = {k: r for k, r in self.rows.items() if k in keys}

    def begin(self, key: Key) -> int:
        """Write down that a case is being judged; how many attempts died in it."""
        deaths = self.suspect.deaths if self.suspect and self.suspect.key == key else 0
        suite, case = key
        row = {"v": 1, "suite": suite, "case": case, "attempt": self._env.attempt, "deaths": deaths}
        atomic_write_json(self.files.current, row, durable=False)
        return deaths

    def add(self, key: Key, row: Row) -> None:
        self._writer.write(dump_json(row))
        self.rows[key] = row

    def rest(self) -> None:
        """The last row was written: whoever ends this process now ends no case."""
        self.files.current.unlink(missing_ok=True)
        self._writer.close()


def read_rows(path: Path) -> dict[Key, Row]:
    """Whole rows by case, in the order in which they were written; a torn line is passed over."""
    try:
        data = read_bytes_bounded(path, MAX_ROWS_BYTES)
    except FileNotFoundError:
        return {}
    found: dict[Key, Row] = {}
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
            found[(str(row["suite"]), str(row["case"]))] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found
