"""`orch parity`: are the kernels right on this pod? A supervised run, followed to its verdict."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_pods, complete_runs
from orchestrator.cli.judging import Kind, answer, judge, refuse_anything_beside_run
from orchestrator.cli.shared import Json, as_the_person, emit, say, whole
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.source import Source

KIND = Kind(
    "parity", "E-PARITY-012", "judges no kernels", "back to it, and its verdict", "stop it between two cells",
    lambda run: (run.parity_rows, run.parity_report, run.rank_log(0)),
)  # fmt: skip


def parity(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE]...", help="kv-decode, decoupled; default: all.")
    ] = None,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="POD", help="Where; default: this machine.", autocompletion=complete_pods),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The whole matrix.")] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="ID", help="One cell.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="auto|cuda|cpu", help="Default: a GPU where there is one.")
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", metavar="N", help="Of the cells' data; default 0.")] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="An interpreter there; default: the pod's.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="The verdict of a run that there is.", autocompletion=complete_runs),
    ] = None,
    to_file: Annotated[bool, typer.Option("--file-report", help="File a report below ./reports.")] = False,
    json: Json = False,
) -> None:
    """Hold the Triton kernels to their references on a pod's GPU. Exit 0: go, 1: no-go. Ctrl-C leaves it running."""
    from orchestrator.runs.waiting import Live

    live, tell = Live(silent=json), partial(_tell, to_file=to_file, json=json)
    if run is None:
        from orchestrator.jobs.parity import parity_job

        number = 0 if seed is None else whole(seed, "--seed")
        loaded = parity_job(suites or [], pod=pod, full=full, only=only, device=device, seed=number, python=python)
        code = judge(KIND, loaded, live, tell, json=json)
    else:
        refuse_anything_beside_run(KIND, run, [suites, pod, full, only, device, seed, python])
        code = answer(KIND, run, live, tell)
    raise typer.Exit(code)


def _tell(source: Source, *, to_file: bool, json: bool) -> int:
    from orchestrator.runs.follow import exit_code, last_words
    from orchestrator.runs.judged import GO
    from orchestrator.runs.parity import result_of
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import ending

    view = source.view()
    result = result_of(view, source.pod)
    path = None
    if to_file:
        from orchestrator.runs.testreport import file_report

        with as_the_person():
            path = file_report(result, Path.cwd(), time.time())
    if json:
        emit({**result.as_json(), "report": None if path is None else str(path)})
    else:
        if result.verdict is None:  # it was halted, or died: what it found so far is no answer
            say(*last_words(view), *ending(view, None), "")
        say(*result.lines(screen_width()), *([] if path is None else [f"report: {path}"]))
    if result.verdict is not None:
        return CliExit.OK if result.verdict.verdict == GO else CliExit.RUN_FAILED
    return exit_code(view) or CliExit.RUN_FAILED
