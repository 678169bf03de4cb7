"""`orch halt RUN` and `orch halt --all`: have runs checkpoint and stop, and say of each how it ended.

What is asked is a file where the run lies; how it went with each is found out by `orchestrator.runs.halts`.
The exit code is that of the worst that happened: a run that still lives, a pod that could not be asked, a refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.control import asked, tell_why
from orchestrator.cli.shared import Json, MaybeRun, emit, hint, home, operator, say, wake_where_asleep
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.halts import Halted


def halt(
    run: MaybeRun = None,
    all_runs: Annotated[bool, typer.Option("--all", help="Every run that has not ended, on every pod.")] = False,
    now: Annotated[bool, typer.Option("--now", help="SIGTERM after 10 s and SIGKILL after 30 s.")] = False,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with the run.")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask and return.")] = False,
    json: Json = False,
) -> None:
    """Have a run checkpoint and stop, and wait until it has."""
    from orchestrator.runs.halts import Order, halt_runs, living, worst
    from orchestrator.runs.waiting import Live

    if all_runs == (run is not None):
        raise UsageError(
            "E-CLI-006",
            "name a run or give --all" + (", not both" if run else ""),
            where="orch halt",
            fix="orch halt latest",
        )
    tell_why(why)
    again = "halt --all" + (" --now" if now else "")
    chosen, lost = living(home(), again) if all_runs else ([asked(str(run), "halt")], [])
    order = Order(now=now, why=why, who=operator(), wait=not no_wait)
    try:
        ended = halt_runs(chosen, order, Live(silent=json), wake_where_asleep)
    except KeyboardInterrupt:
        hint("\nno longer waiting; what was asked goes on")
        raise typer.Exit(CliExit.INTERRUPTED) from None
    finally:
        for source in chosen:
            source.close()
    ended += lost
    if json:
        emit({"v": 1, "runs": [e.stopped.as_json() for e in ended if e.stopped], "not_asked": _not_asked(ended)})
    else:
        _show(ended, all_runs=all_runs)
    problems = list({id(e.error): e.error for e in ended if e.error is not None}.values())
    for error in problems:
        hint(error.render())  # not raised: under --json the one document is out already
    if problems:
        raise typer.Exit(worst(problems))


def _show(ended: list[Halted], *, all_runs: bool) -> None:
    from orchestrator.runs.render import screen_width, table

    if not ended:
        say("every run has ended")
    for told in (e.stopped for e in ended if e.stopped is not None):
        say(*told.lines(), "")
    if all_runs and ended:
        rows = [(e.run, e.pod, e.words) for e in ended]
        say(*table(("RUN", "POD", "HALT"), rows, width=screen_width()).splitlines())


def _not_asked(ended: list[Halted]) -> list[dict[str, object]]:
    rows = [(e.run, e.pod, e.error) for e in ended if e.stopped is None and e.error is not None]
    return [{"run": run, "pod": pod, "code": e.code, "what": e.what, "fix": e.fix} for run, pod, e in rows]
