"""`orch doctor` and `orch down`: this machine."""

from __future__ import annotations

import typer

from orchestrator.cli.shared import Json, emit, home, say
from workloads.contract.exitcodes import CliExit


def doctor(json: Json = False) -> None:
    """Look at this machine: what is there, what is wrong, and what to type against it."""
    from orchestrator.doctor.checks import examine
    from orchestrator.doctor.report import as_json, lines

    checks = examine(home())
    if json:
        emit(as_json(checks))
    else:
        say(*lines(checks))
    if any(c.level == "fail" for c in checks):
        raise typer.Exit(CliExit.LOCAL)


def down(json: Json = False) -> None:
    """Stop this machine's idle Ray and keeper. Refused while a run has not ended."""
    from pods.keeper.client import KeeperClient, running

    if running(home()) is None:
        reply: dict[str, object] = {"stopped": False}
        told = "nothing to stop: no keeper runs here"
    else:
        reply = {k: v for k, v in KeeperClient(home()).down().items() if k != "ok"}
        stayed = reply.get("stayed")
        told = "the keeper and its Ray have stopped" + (f"; these stayed: {stayed}" if stayed else "")
    if json:
        emit({"v": 1, **reply})
    else:
        say(told)
