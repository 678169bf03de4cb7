"""Which run a person means: an id, the beginning of one, a name (its newest run) or `latest`.

Never guesses between two: both are named and nothing is done. Called by every command that takes RUN.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from orchestrator.runs.index import IndexRow, list_runs
from workloads.contract.errors import UsageError, escape
from workloads.contract.process import marked
from workloads.contract.rundir import OrchHome, RunDir

LATEST = "latest"
MAX_NAMED = 5


def resolve(home: OrchHome, ref: str) -> RunDir:
    """The run directory that `ref` names. UsageError (exit 2) when there is none, or more than one."""
    return home.run(pick(list_runs(home), ref).run)


def pick(rows: Sequence[IndexRow], ref: str) -> IndexRow:
    """The one row of `rows` (newest first) that `ref` names. Reads /proc where a directory is gone."""
    here = [row for row in rows if row.present]
    found = _matches(here, ref)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(r.run for r in found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
        raise UsageError(
            "E-RUN-002", f"'{escape(ref, 60)}' is the beginning of {len(found)} run ids", value=ref,
            expected=f"one of {names}", fix="type more of the id",
        )  # fmt: skip
    gone = _matches([row for row in rows if not row.present], ref)
    if gone:
        raise _gone(gone[0], ref)
    if not here:
        raise UsageError("E-RUN-004", "there is no run yet", value=ref, fix="orch launch tiny")
    raise UsageError(
        "E-RUN-001",
        f"no run is called '{escape(ref, 60)}'",
        value=ref,
        did_you_mean=_nearest(here, ref),
        fix="`orch runs` lists all",
    )


def _gone(row: IndexRow, ref: str) -> UsageError:
    """Where its processes live on without the directory nobody but a person ends them."""
    what, pids = f"the directory of run {row.run} is gone", [str(p.pid) for p in marked(row.run)]
    if pids:
        fix = f"kill -9 {' '.join(pids)}   (nothing of it can be saved any more)"
        return UsageError("E-RUN-003", f"{what}, and its processes live", value=ref, fix=fix)
    return UsageError("E-RUN-003", what, value=ref, fix="`orch runs --rebuild` forgets runs whose directory is gone")


def _matches(rows: Sequence[IndexRow], ref: str) -> list[IndexRow]:
    """Rows named by `ref`; one for an id, a name or `latest`, any number for the beginning of an id."""
    exact = [r for r in rows if r.run == ref]
    named = [r for r in rows if r.name == ref or ref == LATEST]
    return exact or named[:1] or ([r for r in rows if r.run.startswith(ref)] if ref else [])


def _nearest(rows: Sequence[IndexRow], ref: str) -> str | None:
    words = list(dict.fromkeys([r.name for r in rows] + [r.run for r in rows] + [LATEST]))
    return next(iter(difflib.get_close_matches(ref, words, 1, 0.5)), None)
