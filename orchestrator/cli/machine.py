"""`orch doctor` and `orch down`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.shared import Json, emit, home, say
from workloads.contract.exitcodes import CliExit
from workloads.contract.rundir import OrchHome

DOWN_S = 60.0


def doctor(json: Json = False) -> None:
    """Look at this machine: what is there, what is wrong, and what to type against it."""
    from orchestrator.doctor.checks import examine
    from orchestrator.doctor.report import as_json, lines

    checks = examine(OrchHome.from_env())  # what is wrong with it is one of the checks
    if json:
        emit(as_json(checks))
    else:
        say(*lines(checks))
    if any(c.level == "fail" for c in checks):
        raise typer.Exit(CliExit.LOCAL)


def down(
    pod: Annotated[
        str | None, typer.Argument(metavar="POD", help="A pod of the inventory; default: this machine.")
    ] = None,
    json: Json = False,
) -> None:
    """Stop the idle Ray and keeper of this machine or of a pod. Refused while a run has not ended there."""
    from orchestrator.runs.render import one_line
    from pods.access import find_pod

    _, found = find_pod(home(), pod or "local")
    where = f"on pod {pod}" if pod else "here"
    try:
        reply = found.call("runs.down", timeout_s=DOWN_S).fields
    finally:
        found.close()
    if reply.get("stopped") is not True:
        told = f"nothing to stop: no keeper runs {where}"
    else:
        stayed = one_line(str(reply.get("stayed") or ""))
        told = f"the keeper and its Ray have stopped {where}" + (f"; these stayed: {stayed}" if stayed else "")
    if json:
        emit({**reply, "v": 1})
    else:
        say(told)
