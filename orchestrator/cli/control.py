"""`orch halt`, `orch dump` and `orch resume`: each leaves a request in the run directory and waits for the answer.

The request is made where the run lies; the answer is read here, or from the copy of the run.
"""

from __future__ import annotations

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
    open_source,
    operator,
    protect,
    say,
    wake_where_asleep,
    whole,
)
from workloads.contract.errors import ConflictError, OrchError, RemoteError, SpecError, UnreachableError, UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.fleet import Look
    from orchestrator.runs.follow import Stopped
    from orchestrator.runs.source import Source
    from orchestrator.runs.views import RunView
    from orchestrator.runs.waiting import Live

DUMP_ANSWER_S = 10.0
RESUME_ANSWER_S = 30.0


def halt(
    run: MaybeRun = None,
    all_runs: Annotated[bool, typer.Option("--all", help="Every run that has not ended.")] = False,
    now: Annotated[bool, typer.Option("--now", help="SIGTERM after 10 s and SIGKILL after 30 s.")] = False,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with the run.")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask and return.")] = False,
    json: Json = False,
) -> None:
    """Have a run checkpoint and stop, and wait until it has."""
    if all_runs == (run is not None):
        raise UsageError(
            "E-CLI-006",
            "name a run or give --all" + (", not both" if run else ""),
            where="orch halt",
            fix="orch halt latest",
        )
    _tell_why(why)
    chosen, lost = _living() if all_runs else ([_asked(str(run), "halt")], [])
    try:
        stops, refused = _halt(chosen, now=now, why=why, wait=not no_wait, quiet=json)
    except KeyboardInterrupt:
        hint("\nno longer waiting; what was asked goes on")
        raise typer.Exit(CliExit.INTERRUPTED) from None
    finally:
        for source in chosen:
            source.close()
    if json:
        emit({"v": 1, "runs": [s.as_json() for s in stops]})
    elif not chosen:
        say("every run has ended" if not lost else "every run on the machines that could be asked has ended")
    else:
        say(*(line for s in stops for line in (*s.lines(), "")))
    late = [s.view.run.run_id for s in stops if s.timed_out]
    if late:
        where = next((k.view.sight.path if k.view.sight else str(k.view.run.path)) for k in stops if k.timed_out)
        refused.append(
            RemoteError(
                "E-HALT-001",
                f"run {late[0]} was asked to halt and has not stopped in time",
                where=where,
                fix=f"orch status {late[0]}; orch halt {late[0]} --now",
            )
        )
    for error in (*lost, *refused):
        hint(error.render())  # not raised: under --json the one document is out already
    if lost or refused:
        raise typer.Exit((*refused, *lost)[0].exit_code)


def _tell_why(why: str) -> None:
    """A reason that is kept otherwise than it was typed is shown as it is kept."""
    from orchestrator.runs.render import one_line
    from workloads.contract.errors import escape
    from workloads.contract.haltfile import MAX_WHY_CHARS

    kept = escape(why.strip(), MAX_WHY_CHARS)
    if kept != why.strip():
        limit = f" (at most {MAX_WHY_CHARS} characters)" if len(why) > MAX_WHY_CHARS else ""
        hint(f"note: the reason is kept as{limit}: {one_line(kept, MAX_WHY_CHARS)}")


def _halt(
    chosen: list[Source], *, now: bool, why: str, wait: bool, quiet: bool
) -> tuple[list[Stopped], list[OrchError]]:
    """Ask all, then wait for one after the other. What went wrong with one of several is told at the end."""
    import time

    from orchestrator.runs.follow import halt_limit_s, not_waited, wait_stopped
    from orchestrator.runs.waiting import Live

    live, refused = Live(silent=quiet), list[OrchError]()
    limits: dict[int, float] = {}
    views = [source.view() for source in chosen]
    asked = _ask_all([s for s, v in zip(chosen, views, strict=True) if not v.over], now=now, why=why)
    for i, (source, view) in enumerate(zip(chosen, views, strict=True)):
        error = asked.get(source.run.run_id)
        if error is not None:
            refused.append(error)
        elif not view.over:
            limits[i] = time.monotonic() + halt_limit_s(view, now=now)
            _tell_halt(view, live, limits[i] - time.monotonic(), wait=wait)
    for source in {chosen[i].pod: chosen[i] for i in limits}.values():
        wake_where_asleep(source)
    if len(chosen) == 1 and refused:
        raise refused[0]
    stops = []
    for i, source in enumerate(chosen):
        if i in limits and wait:
            stops.append(wait_stopped(source, live, limit_s=limits[i] - time.monotonic()))
        elif asked.get(source.run.run_id) is None:
            stops.append(not_waited(source))
    return stops, refused


def _ask_all(chosen: list[Source], *, now: bool, why: str) -> dict[str, OrchError | None]:
    """Ask every run to halt, all pods at once; what went wrong, by run."""
    import threading

    who, found = operator(), dict[str, OrchError | None]()

    def ask(sources: list[Source]) -> None:
        for source in sources:
            try:
                source.ask("halt", run=source.run.run_id, now=now, why=why, who=who)
                found[source.run.run_id] = None
            except OrchError as e:
                found[source.run.run_id] = e

    by_pod: dict[str, list[Source]] = {}
    for source in chosen:
        by_pod.setdefault(source.pod, []).append(source)
    threads = [threading.Thread(target=ask, args=(group,), daemon=True) for group in by_pod.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # every call has its own bound
    return found


def _tell_halt(view: RunView, live: Live, limit_s: float, *, wait: bool) -> None:
    from orchestrator.runs.render import duration

    live.line(f"{view.run.run_id}  asked to halt" + (f" (at most {duration(limit_s)})" if wait else ""))


def dump(run: Run, ranks: Ranks = None, json: Json = False) -> None:
    """The stack of every rank, without stopping any."""
    from orchestrator.runs.source import wait_ack

    chosen = [whole(k, "--rank") for k in ranks] if ranks else None
    source = _asked(run, "dump")
    view = source.view()
    _refuse_dump(view, chosen)
    wake_where_asleep(source)
    request = str(source.ask("dump", run=view.run.run_id, ranks=chosen, why="orch dump", who=operator())["request"])
    ack = wait_ack(source, request, timeout_s=DUMP_ANSWER_S)
    if ack is None:
        raise RemoteError(
            "E-DUMP-003", f"no answer in {DUMP_ANSWER_S:.0f} s; the dump may still be written",
            where=str(view.run.stackdumps), fix=f"look there, or into {home().keeper_log}",
        )  # fmt: skip
    if not ack.ok:
        raise RemoteError("E-DUMP-004", f"the dump was refused: {ack.why}", where=str(view.run.path))
    _fetch_dumps(source, ack.data.get("files"))
    source.close()
    if json:
        emit({"v": 1, "run": view.run.run_id, **{k: ack.data.get(k, []) for k in ("groups", "files", "notes")}})
    else:
        from orchestrator.runs.stacks import dump_lines

        say(*dump_lines(view.run, ack.data))


def _fetch_dumps(source: Source, files: object) -> None:
    """Of a run on a pod: the files that the answer names, into the copy. The answer is shown without them too."""
    from orchestrator.runs.source import fetch
    from pods.remote.runfiles import kind_of, name_in

    names = [str(f).rsplit("/", 1)[-1] for f in files] if isinstance(files, list) else []
    wanted: dict[str, int | None] = {name_in(source.run, source.run.stackdumps / n): None for n in names}
    try:
        fetch(source, "status", {n: lines for n, lines in wanted.items() if kind_of(n) is not None})
    except OrchError as e:
        hint(f"note: the dumps were not copied: {e.what}")


def _refuse_dump(view: RunView, ranks: list[int] | None) -> None:
    states = ", ".join(f"rank {r.rank} {r.health.value} ({r.verdict.why})" for r in view.ranks[:16])
    if view.ended:
        raise ConflictError(
            "E-DUMP-001", f"run {view.run.run_id} has ended ({view.state}): there is nothing to dump",
            expected=states or None, fix=f"orch logs {view.run.run_id} --errors",
        )  # fmt: skip
    foreign = [k for k in ranks or [] if k >= (view.world_size or 1)]
    if foreign:
        raise UsageError(
            "E-RUN-005", f"run {view.run.run_id} has no rank {foreign[0]}", where="--rank", value=foreign[0],
            expected=states or None, fix=f"orch status {view.run.run_id}",
        )  # fmt: skip
    if not any(r.record for r in view.ranks):
        raise ConflictError(
            "E-DUMP-002", f"run {view.run.run_id} has no rank yet: it is {view.state}", expected=view.reason or None,
            fix=f"orch status {view.run.run_id}",
        )  # fmt: skip


def resume(
    run: Run,
    code: Annotated[
        str, typer.Option("--code", metavar="run|current", help="Whose code: the run's own, or today's.")
    ] = "run",
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with the run.")] = "",
    json: Json = False,
) -> None:
    """Go on with a halted or failed run from its newest checkpoint."""
    if code not in ("run", "current"):
        raise UsageError(
            "E-CLI-004", f"--code cannot be {code!r}", where="orch resume", value=code, expected="run or current"
        )
    from orchestrator.runs.source import wait_ack

    _tell_why(why)
    source = _asked(run, "resume")
    ident = source.run.run_id
    wake_where_asleep(source)  # first: a resume that is refused is still a contact
    tree = source.push_tree() if code == "current" else None
    request = str(source.ask("resume", run=ident, tree=tree, why=why, who=operator())["request"])
    if not json:
        say(f"{ident}  asked to resume")
    ack = wait_ack(source, request, timeout_s=RESUME_ANSWER_S)
    source.close()
    if ack is not None and not ack.ok:
        raise ConflictError("E-RESUME-001", f"the supervisor refused: {ack.why}", where=ident)
    if json:
        emit({"v": 1, "run": ident, "request": request, "acknowledged": ack is not None})
        return
    told = "resuming" if ack else f"not answered in {RESUME_ANSWER_S:.0f} s; the request stays and is carried out"
    say(f"{ident}  {told}", f"  orch status {ident}", f"  orch logs {ident} -f")


def _asked(ref: str, verb: str) -> Source:
    """The run that `ref` names, after its pod was asked how it stands. OrchError when it cannot be asked."""
    from orchestrator.runs.source import fetch

    source = open_source(ref)
    if source.far:
        try:
            fetch(source)
        except UnreachableError as e:
            raise _unasked(e, f"run {source.run.run_id} was not asked to {verb}", f"{verb} {source.run.run_id}") from e
        protect(source)
    return source


def _unasked(e: OrchError, what: str, again: str) -> OrchError:
    """That nothing was done, why, and what to type once there is a way to the pod."""
    look = (e.fix or "").split("   (")[0]
    fix = f"orch {again}   (once the pod answers" + (f"; what keeps it: {look})" if look else ")")
    return type(e)(e.code, f"{what}: {e.what}", where=e.where, value=e.value, expected=e.expected, fix=fix)


def _living() -> tuple[list[Source], list[OrchError]]:
    """Every run that has not ended, here and on all pods; and why pods could not be asked."""
    from orchestrator.runs.fleet import far_pods, has_far_pods, sources, survey
    from orchestrator.runs.views import state_of
    from workloads.contract.states import ENDED

    looks: list[Look] = []
    lost: list[OrchError] = []
    try:
        looks = survey(home(), far_pods(home())) if has_far_pods(home()) else []
    except OrchError as e:  # an inventory that is wrong: the runs of this machine are halted all the same
        fix = "orch pods list   (tells what is wrong in it), then orch halt --all"
        what = f"no pod was asked to halt its runs: {e.what}"
        lost.append(SpecError(e.code, what, where=str(home().inventory), fix=fix))
    known = sources(home(), looks)
    errors = {look.name: look.error for look in looks if look.error is not None}
    for pod, error in errors.items():
        there = [s for s in known if s.far and s.pod == pod]
        living = [s.run.run_id for s in there if state_of(s.run) not in ENDED]
        if isinstance(error, UnreachableError) or there:  # a pod that never had what a run needs has none
            runs = f"run {', '.join(living)}" if living else f"what runs on pod {pod}"
            lost.append(_unasked(error, f"{runs} was not asked to halt", "halt --all"))
    reached = [s for s in known if not s.far or s.pod not in errors]
    return [s for s in reached if state_of(s.run) not in ENDED and s.run.path.is_dir()], lost
