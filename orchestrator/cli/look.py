"""`orch status`, `orch runs` and `orch logs`: they read and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import Json, MaybeRun, Ranks, Run, emit, hint, home, say, wake_if_asleep, whole
from workloads.contract.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.runs.index import IndexRow
    from orchestrator.runs.views import RunView

ENDED_SHOWN = 10


def status(run: MaybeRun = None, json: Json = False) -> None:
    """How runs are doing: all that have not ended and the newest that have, or one of them in full."""
    import time

    from orchestrator.runs.events import read_events
    from orchestrator.runs.find import resolve
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import screen
    from orchestrator.runs.views import snapshot

    now = time.time()
    one = snapshot(resolve(home(), run), now) if run else None
    views = [one] if one else _newest(now)
    if json:
        emit({"v": 1, "runs": [v.as_json() for v in views]})
    else:
        say(screen(one, read_events(one.run), screen_width()) if one else _table(views))
    if any(not v.ended and not v.supervised for v in views):
        wake_if_asleep()  # last: the answer does not wait for it


def _table(views: list[RunView]) -> str:
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import runs_table

    return runs_table(views, screen_width()) if views else "no run yet; start one:  orch launch tiny"


def _newest(now: float) -> list[RunView]:
    from orchestrator.runs.index import list_runs
    from orchestrator.runs.views import snapshot, state_of
    from workloads.contract.states import ENDED

    here = [home().run(row.run) for row in list_runs(home()) if row.present]
    states = [(run, state_of(run) in ENDED) for run in here]
    ended = [run for run, over in states if over][:ENDED_SHOWN]
    shown = [run for run, over in states if not over] + ended
    return [snapshot(run, now) for run in shown]


def runs(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew from the run directories.")] = False,
    json: Json = False,
) -> None:
    """Every run that is here or was."""
    from orchestrator.runs import index
    from orchestrator.runs.views import state_of

    if rebuild:
        count = index.rebuild(home())
        hint(f"the index was made anew: {count} run{'' if count == 1 else 's'}")
    rows = index.list_runs(home())
    states = [state_of(home().run(r.run)) if r.present else "directory gone" for r in rows]
    if json:
        emit({"v": 1, "runs": [_row(r, s) for r, s in zip(rows, states, strict=True)]})
        return
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import index_table

    say(index_table(rows, states, screen_width()) if rows else "no run yet; start one:  orch launch tiny")


def _row(row: IndexRow, state: str) -> dict[str, object]:
    return {
        "run": row.run,
        "name": row.name,
        "state": state if row.present else None,
        "created": row.created,
        "kind": row.kind,
        "pods": list(row.pods),
        "present": row.present,
        "dir": str(home().run(row.run).path),
    }


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    ranks: Ranks = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="10m, 2h, an ISO time, or `attempt`; found by heartbeats."),
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Tracebacks, errors and warnings alone.")] = False,
    lines: Annotated[str | None, typer.Option("-n", "--lines", metavar="N", help="The last N lines of a rank.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Bytes as they are; not to a terminal.")] = False,
    json: Json = False,
) -> None:
    """What the ranks printed. Control characters are shown as escapes."""
    import sys

    from orchestrator.runs.find import resolve
    from orchestrator.runs.printing import Selection, follow_logs, logs_json, print_errors, print_logs

    _refuse_clash(follow=follow, errors=errors, raw=raw, json=json, tty=sys.stdout.isatty())
    last = whole(lines, "--lines") if lines is not None else None
    wanted = [whole(k, "--rank") for k in ranks or []]
    chosen = Selection.of(resolve(home(), run), ranks=wanted, since=since, lines=last, raw=raw, note=hint)
    if json:
        emit(logs_json(chosen, errors=errors))
    elif errors:
        print_errors(chosen)
    elif follow:
        follow_logs(chosen)
    else:
        print_logs(chosen)


def _refuse_clash(*, follow: bool, errors: bool, raw: bool, json: bool, tty: bool) -> None:
    clashes = (
        (follow and errors, "--follow and --errors exclude each other", "orch logs RUN --errors"),
        (follow and json, "--follow and --json exclude each other", "orch logs RUN -f --raw | cat"),
        (raw and (json or errors), "--raw goes with neither --json nor --errors", "orch logs RUN --raw > rank.log"),
        (raw and tty, "--raw is not for a terminal: logs may hold escapes", "orch logs RUN --raw | less"),
    )
    for is_clash, what, fix in clashes:
        if is_clash:
            raise UsageError("E-CLI-007", what, where="orch logs", fix=fix)
