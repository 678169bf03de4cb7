"""`orch halt`, `orch dump` and `orch resume`: each leaves a request in the run directory and waits for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import Json, MaybeRun, Ranks, Run, emit, hint, home, operator, say, wake_if_asleep, whole
from workloads.contract.errors import ConflictError, RemoteError, UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.follow import Stopped
    from orchestrator.runs.views import RunView
    from orchestrator.runs.waiting import Live
    from workloads.contract.rundir import RunDir

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
    chosen = _living() if all_runs else [_resolve(str(run))]
    try:
        stops = _halt(chosen, now=now, why=why, wait=not no_wait, quiet=json)
    except KeyboardInterrupt:
        hint("\nno longer waiting; what was asked goes on")
        raise typer.Exit(CliExit.INTERRUPTED) from None
    if json:
        emit({"v": 1, "runs": [s.as_json() for s in stops]})
    elif not chosen:
        say("every run has ended")
    else:
        say(*(line for s in stops for line in (*s.lines(), "")))
    late = [s.view.run.run_id for s in stops if s.timed_out]
    if late:
        error = RemoteError(
            "E-HALT-001", f"run {late[0]} was asked to halt and has not stopped in time",
            where=str(home().run(late[0]).path), fix=f"orch status {late[0]}; orch halt {late[0]} --now",
        )  # fmt: skip
        hint(error.render())  # not raised: under --json the one document is out already
        raise typer.Exit(error.exit_code)


def _halt(chosen: list[RunDir], *, now: bool, why: str, wait: bool, quiet: bool) -> list[Stopped]:
    import time

    from orchestrator.runs.follow import halt_limit_s, not_waited, wait_stopped
    from orchestrator.runs.views import snapshot
    from orchestrator.runs.waiting import Live
    from pods.remote import control

    live = Live(silent=quiet)
    limits: dict[RunDir, float] = {}
    for run in chosen:
        view = snapshot(run, time.time())
        if not view.ended:
            control.halt(run, now=now, why=why, who=operator())
            limits[run] = time.monotonic() + halt_limit_s(view, now=now)
            _tell_halt(view, live, limits[run] - time.monotonic(), wait=wait)
    if limits:
        wake_if_asleep()
    stops = []
    for run in chosen:
        if run in limits and wait:
            stops.append(wait_stopped(run, live, limit_s=limits[run] - time.monotonic()))
        else:
            stops.append(not_waited(run))
    return stops


def _tell_halt(view: RunView, live: Live, limit_s: float, *, wait: bool) -> None:
    from orchestrator.runs.render import duration

    live.line(f"{view.run.run_id}  asked to halt" + (f" (at most {duration(limit_s)})" if wait else ""))


def dump(run: Run, ranks: Ranks = None, json: Json = False) -> None:
    """The stack of every rank, without stopping any."""
    import time

    from orchestrator.runs.views import snapshot
    from pods.remote import control

    chosen = [whole(k, "--rank") for k in ranks] if ranks else None
    view = snapshot(_resolve(run), time.time())
    _refuse_dump(view, chosen)
    wake_if_asleep()
    request = control.dump(view.run, ranks=chosen, why="orch dump", who=operator())
    ack = control.wait_ack(request, timeout_s=DUMP_ANSWER_S)
    if ack is None:
        raise RemoteError(
            "E-DUMP-003", f"no answer in {DUMP_ANSWER_S:.0f} s; the dump may still be written",
            where=str(view.run.stackdumps), fix=f"look there, or into {home().keeper_log}",
        )  # fmt: skip
    if not ack.ok:
        raise RemoteError("E-DUMP-004", f"the dump was refused: {ack.why}", where=str(view.run.path))
    if json:
        emit({"v": 1, "run": view.run.run_id, **{k: ack.data.get(k, []) for k in ("groups", "files", "notes")}})
    else:
        from orchestrator.runs.stacks import dump_lines

        say(*dump_lines(view.run, ack.data))


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
    from pods.remote import control
    from pods.tree import ensure_tree

    found = _resolve(run)
    wake_if_asleep()  # first: a resume that is refused is still a contact
    tree = ensure_tree(home()) if code == "current" else None
    request = control.resume(found, who=operator(), why=why, tree=tree)
    if not json:
        say(f"{found.run_id}  asked to resume")
    ack = control.wait_ack(request, timeout_s=RESUME_ANSWER_S)
    if ack is not None and not ack.ok:
        raise ConflictError("E-RESUME-001", f"the supervisor refused: {ack.why}", where=found.run_id)
    if json:
        emit({"v": 1, "run": found.run_id, "request": request.name, "acknowledged": ack is not None})
        return
    told = "resuming" if ack else f"not answered in {RESUME_ANSWER_S:.0f} s; the request stays and is carried out"
    say(f"{found.run_id}  {told}", f"  orch status {found.run_id}", f"  orch logs {found.run_id} -f")


def _resolve(ref: str) -> RunDir:
    from orchestrator.runs.find import resolve

    return resolve(home(), ref)


def _living() -> list[RunDir]:
    from orchestrator.runs.index import list_runs
    from orchestrator.runs.views import state_of
    from workloads.contract.states import ENDED

    here = [home().run(row.run) for row in list_runs(home()) if row.present]
    return [run for run in here if state_of(run) not in ENDED]
