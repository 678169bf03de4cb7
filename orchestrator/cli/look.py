"""`orch status`, `orch runs` and `orch logs`: they read runs, here and on pods, and change none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import (
    Json,
    MaybeRun,
    Ranks,
    Run,
    emit,
    hint,
    home,
    look_at,
    open_source,
    protect,
    say,
    wake_where_asleep,
    whole,
)
from workloads.contract.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.runs.fleet import Look
    from orchestrator.runs.index import IndexRow
    from orchestrator.runs.source import Source
    from orchestrator.runs.views import RunView


Cached = Annotated[bool, typer.Option("--cached", help="From the copies here; no pod is asked.")]


def status(run: MaybeRun = None, cached: Cached = False, json: Json = False) -> None:
    """How runs are doing, here and on every pod: those that have not ended and the newest that have, or one in full."""
    if run:
        _status_of(run, cached=cached, json=json)
        return
    from orchestrator.runs.fleet import close_all, newest, sources
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import runs_table

    looks = [] if cached else _survey()
    shown = newest(sources(home(), looks, asked=not cached))
    views = [s.view() for s in shown]
    for source in shown:
        protect(source)
    if json:
        emit({"v": 1, "runs": [v.as_json() for v in views]})
    else:
        say(runs_table(views, screen_width()) if views else "no run yet; start one:  orch launch tiny")
    _tell(looks)
    _tell_forgotten(shown)
    if any(not v.ended for v in views):
        _tell_unwatched()
    lonely = {s.pod: s for s, v in zip(shown, views, strict=True) if not v.ended and not v.supervised and _asked(v)}
    for source in lonely.values():
        wake_where_asleep(source)  # last: the answer does not wait for it
    close_all(looks)


def _asked(view: RunView) -> bool:
    return view.sight is None or view.sight.reachable is True


def _survey() -> list[Look]:
    """Every pod of the inventory asked; [] and nothing imported where it has none on another machine."""
    from orchestrator.runs.fleet import far_pods, has_far_pods, survey
    from orchestrator.runs.source import REACH_S
    from workloads.contract.errors import OrchError

    if not has_far_pods(home()):
        return []
    try:
        return survey(home(), far_pods(home()), reach_s=REACH_S)
    except OrchError as e:  # an inventory that is wrong: the runs of this machine are shown all the same
        hint(e.render())
        return []


def _tell(looks: list[Look]) -> None:
    from orchestrator.runs.fleet import claims, troubles

    for line in [*troubles(looks), *(claims(home(), looks) if looks else [])]:
        hint(line)


def _tell_forgotten(shown: list[Source]) -> None:
    """Runs of pods that the inventory does not know are still there: how they are seen again."""
    from orchestrator.runs.source import FarSource

    names = {s.pod for s in shown if isinstance(s, FarSource) and s.error and s.error.code == "E-INV-020"}
    for name in sorted(names):
        hint(f"note: pod {name} is not in the inventory; to see its runs again:  orch pods add {name} user@host[:port]")


def _tell_unwatched() -> None:
    """Where an `orch watch` was started and none looks any more: nobody would be told of a change."""
    import time

    from orchestrator.runs.render import ago, clock
    from orchestrator.runs.watchbeat import unwatched_since

    since = unwatched_since(home(), time.time())
    if since is not None:
        hint(f"note: unwatched since {clock(since)} ({ago(time.time() - since)}); the runs go on.  orch watch")


def _status_of(run: str, *, cached: bool, json: bool) -> None:
    from orchestrator.runs.events import read_events
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import screen

    source = open_source(run)
    look_at(source, cached=cached)
    view = source.view()
    if json:
        emit({"v": 1, "runs": [view.as_json()]})
    else:
        say(screen(view, read_events(view.run), screen_width()))
    if not view.ended and not view.supervised and _asked(view):
        wake_where_asleep(source)  # last: the answer does not wait for it
    source.close()


def runs(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew from the run directories.")] = False,
    pod: Annotated[str | None, typer.Option("--from", metavar="POD", help="The runs that lie on this pod.")] = None,
    json: Json = False,
) -> None:
    """Every run that is known, here or on a pod."""
    from orchestrator.runs import index

    if rebuild:
        count = index.rebuild(home())
        hint(f"the index was made anew: {count} run{'' if count == 1 else 's'}")
    states = _ask_for_runs(pod) if pod else {}
    rows = [r for r in index.list_runs(home()) if not pod or r.run in states]
    told = [states.get(r.run) or _state_of(r) for r in rows]
    if json:
        emit({"v": 1, "runs": [_row(r, s) for r, s in zip(rows, told, strict=True)]})
        return
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import index_table

    nothing = f"no run lies on pod {pod}" if pod else "no run yet; start one:  orch launch tiny"
    say(index_table(rows, told, screen_width()) if rows else nothing)


def _ask_for_runs(pod: str) -> dict[str, str]:
    """State of every run on a pod, by its own word; the index knows them then. OrchError when it cannot be asked."""
    from orchestrator.runs.fleet import claims, close_all, survey
    from pods.access import find_spec

    spec = find_spec(home(), pod)
    if spec.local:
        return {r.run: _state_of(r) for r in _here()}
    (look,) = survey(home(), {pod: spec})
    close_all([look])
    if look.error is not None:
        raise look.error
    for line in claims(home(), [look]):
        hint(line)
    return {t.run: t.state for r in look.rounds for t in r.listed}


def _here() -> list[IndexRow]:
    from orchestrator.runs.index import list_runs

    return [r for r in list_runs(home()) if not r.pod and r.present]


def _state_of(row: IndexRow) -> str:
    from orchestrator.runs.views import state_of

    if not row.present:
        return "directory gone"
    if not row.pod:
        return state_of(home().run(row.run))
    copy = home().mirrored(row.run)
    return state_of(copy) if copy.path.is_dir() else "unknown"


def _row(row: IndexRow, state: str) -> dict[str, object]:
    return {
        "run": row.run,
        "name": row.name,
        "state": state if row.present else None,
        "created": row.created,
        "kind": row.kind,
        "pods": list(row.pods),
        "present": row.present,
        "dir": str(home().mirrored(row.run).path if row.pod else home().run(row.run).path),
        "pod": row.pod or "local",
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

    from orchestrator.runs.printing import Selection, follow_logs, logs_json, print_errors, print_logs

    _refuse_clash(follow=follow, errors=errors, raw=raw, json=json, tty=sys.stdout.isatty())
    last = whole(lines, "--lines") if lines is not None else None
    wanted = [whole(k, "--rank") for k in ranks or []]
    source = open_source(run)
    look_at(source)
    chosen = Selection.of(source, ranks=wanted, since=since, lines=last, raw=raw, note=hint, on_bytes=_fetched(source))
    if json:
        emit(logs_json(chosen, errors=errors))
    elif errors:
        print_errors(chosen)
    elif follow:
        follow_logs(chosen)
    else:
        print_logs(chosen)


def _fetched(source: Source) -> Callable[[int], None] | None:
    """How much was fetched so far, on one line of a terminal."""
    import sys

    if not source.far or not sys.stderr.isatty():
        return None
    shown = 0

    def tell(size_bytes: int) -> None:
        nonlocal shown
        if size_bytes - shown >= 8 << 20:
            shown = size_bytes
            print(f"\rfetched {size_bytes >> 20} MiB of logs", end="\r", file=sys.stderr)

    return tell


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
