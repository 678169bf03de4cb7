"""The list of runs at home: SQLite in WAL mode, a convenience that can be lost.

The directories `runs/` and `mirror/` are the truth. The index remembers what a listing of them cannot: runs whose
directory is gone, and on which pod a run lies of which nothing was copied yet.
A missing, locked, foreign or damaged database never stops a command: rows then come from the directories, the fact is
said once on stderr, and a damaged database is made anew. Called by `orchestrator.jobs.launch` and by every view.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pods.keeper.runs import run_ids
from workloads.contract.errors import LocalError
from workloads.contract.files import try_read_json
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome, RunDir

SCHEMA = 2
LOCAL = "local"
LOCK_TIMEOUT_S = 0.3
MAX_TS_S = 1e11  # a later one is no time that can be shown; nor is NaN
_TABLE = (
    "CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL,"
    " kind TEXT NOT NULL, pods TEXT NOT NULL, pod TEXT NOT NULL DEFAULT '') WITHOUT ROWID"
)
Note = Callable[[str], None]


@dataclass(frozen=True)
class IndexRow:
    run: str
    name: str
    created: float  # Unix seconds
    kind: str
    pods: tuple[str, ...]
    present: bool = True  # False: it was here, its directory is gone
    pod: str = ""  # the inventory's name of the pod where its directory lies; "" for this machine


class _Damaged(Exception):
    """The database is not one of ours, or not one at all."""


def record(home: OrchHome, run_json: Mapping[str, Any], pod: str = "", *, created: bool = True) -> None:
    """Remember one run. Never raises: a launch does not fail because a list could not be written.

    `pod`: where its directory lies, by its name in the inventory; "" for this machine. `created`: it was made now;
    else a row that is there stays, for `run_json` is then of a launch that made nothing.
    """
    told = run_json if created else {**run_json, "created": None}
    row = _row(str(run_json.get("run", "")), told, "" if pod == LOCAL else pod)
    if row is not None:
        with contextlib.suppress(sqlite3.Error, OSError, _Damaged), _open(home) as db:
            _insert(db, [row], instead=created)


def remember(home: OrchHome, rows: Sequence[IndexRow]) -> None:
    """Remember these rows as they are. Never raises."""
    with contextlib.suppress(sqlite3.Error, OSError, _Damaged), _open(home) as db:
        _insert(db, list(rows))


def list_runs(home: OrchHome, note: Note | None = None) -> list[IndexRow]:
    """Every run that is here or was, newest first. What is wrong with the index goes to `note` (default: stderr)."""
    say = note or _say
    ids, copies = run_ids(home), copied_ids(home)
    try:
        with _open(home) as db:
            known = {row.run: row for row in _select(db)}
            new = [row for row in map(home_row(home), sorted((ids | copies) - known.keys())) if row is not None]
            _insert(db, new)
    except (_Damaged, sqlite3.DatabaseError) as e:
        known, new = {}, []
        if isinstance(e, sqlite3.OperationalError) and "locked" in str(e):
            say("note: the index of runs is locked by another command; the run directories were read instead")
        elif isinstance(e, sqlite3.OperationalError) and "no such" not in str(e):  # a full disk passes: nothing is lost
            say(f"note: the index of runs cannot be used now ({e}); the run directories were read instead")
        else:
            say(f"note: the index of runs could not be used ({e}); it was made anew from the run directories")
            with contextlib.suppress(LocalError, OSError, _Damaged):
                rebuild(home)
    except OSError:  # no home yet, or a read-only one: the directories are all there is
        known, new = {}, []
    rows = {row.run: row for row in new}
    for run in ids | copies | known.keys():
        row = rows.get(run) or known.get(run) or home_row(home)(run)
        if row is not None:
            here = run in ids
            rows[run] = replace(row, pod="" if here else row.pod, present=here or row.pod != "")
    return sorted(rows.values(), key=lambda r: (r.created, r.run), reverse=True)


def rebuild(home: OrchHome) -> int:
    """Throw the database away and make it from the run directories; how many runs it holds.

    OSError as usual, LocalError when the database cannot be written.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{home.index}{suffix}")  # noqa: PTH108  a suffix on the whole name, not on its extension
    rows = [row for row in map(home_row(home), sorted(run_ids(home) | copied_ids(home))) if row is not None]
    try:
        with _open(home) as db:
            _insert(db, rows)
    except sqlite3.Error as e:
        raise LocalError(
            "E-INDEX-001", f"the index of runs cannot be written: {e}", where=str(home.index),
            fix="free some space; until then every command reads the run directories",
        ) from e  # fmt: skip
    return len(rows)


def copied_ids(home: OrchHome) -> set[str]:
    """Ids of the runs on other machines of which something lies here."""
    try:
        return {name for name in os.listdir(home.mirror) if RUN_ID_PATTERN.fullmatch(name)}
    except OSError:
        return set()


def home_row(home: OrchHome) -> Callable[[str], IndexRow | None]:
    """A reader of one run's `run.json`; a run whose file is unreadable is still listed, by what its id says."""

    def read(run: str) -> IndexRow | None:
        here = RunDir(home.runs / run)
        if here.path.is_dir():
            return _row(run, try_read_json(here.run_json) or {}, "")
        from orchestrator.runs.mirror import Index

        copy = RunDir(home.mirror / run)
        index = Index.read(copy)
        return _row(run, try_read_json(copy.run_json) or {}, index.pod) if index and index.pod else None

    return read


def row_of(run: str, kind: str, created: float | None, pod: str) -> IndexRow | None:
    """The row of a run that a pod has told of."""
    return _row(run, {"kind": kind, "created": created}, pod)


def _row(run: str, run_json: Mapping[str, Any], pod: str) -> IndexRow | None:
    m = RUN_ID_PATTERN.fullmatch(run)
    if not m:
        return None
    created, pods = run_json.get("created"), run_json.get("pods")
    names = [str(p.get("name")) for p in pods if isinstance(p, dict)] if isinstance(pods, list) else []
    return IndexRow(
        run,
        m["name"],
        float(created) if isinstance(created, int | float) and 0 < created < MAX_TS_S else _unix(m["utc"]),
        str(run_json.get("kind", "unknown")),
        tuple(names) or ((pod,) if pod else ()),
        pod=pod,
    )


def _unix(stamp: str) -> float:
    import calendar
    import time

    from workloads.contract.rundir import UTC_FORMAT

    try:
        return float(calendar.timegm(time.strptime(stamp, UTC_FORMAT)))
    except ValueError:  # fourteen digits that are no date
        return 0.0


@contextlib.contextmanager
def _open(home: OrchHome) -> Iterator[sqlite3.Connection]:
    """A connection in a transaction. OSError when there is no home or it cannot be written."""
    if not os.access(home.path, os.W_OK):
        code = errno.EACCES if home.path.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(home.path))
    db = sqlite3.connect(home.index, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 1:
            db.execute("ALTER TABLE runs ADD COLUMN pod TEXT NOT NULL DEFAULT ''")
            db.execute(f"PRAGMA user_version={SCHEMA}")
        elif version not in (0, SCHEMA):
            raise _Damaged(f"its version is {version}, not {SCHEMA}")
        if version == 0:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(_TABLE)
            db.execute(f"PRAGMA user_version={SCHEMA}")
            home.index.chmod(0o600)
        yield db
    finally:
        db.close()


def _select(db: sqlite3.Connection) -> list[IndexRow]:
    found = []
    for run, name, created, kind, pods, pod in db.execute("SELECT run, name, created, kind, pods, pod FROM runs"):
        texts = (run, name, kind, pods, pod)  # a torn page can answer with anything
        if not all(isinstance(t, str) for t in texts) or not isinstance(created, float):
            raise _Damaged("it holds rows that are none")
        if RUN_ID_PATTERN.fullmatch(run):
            found.append(IndexRow(run, name, created, kind, tuple(filter(None, pods.split(","))), pod=pod))
    return found


def _insert(db: sqlite3.Connection, rows: list[IndexRow], *, instead: bool = True) -> None:
    """`instead`: of a row of the same run that is there."""
    if rows:
        values = [(r.run, r.name, r.created, r.kind, ",".join(r.pods), r.pod) for r in rows]
        db.execute("BEGIN IMMEDIATE")
        db.executemany(f"INSERT OR {'REPLACE' if instead else 'IGNORE'} INTO runs VALUES (?,?,?,?,?,?)", values)
        db.execute("COMMIT")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
