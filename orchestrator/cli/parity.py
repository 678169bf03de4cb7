"""`orch parity`: are the kernels right on this pod? A supervised run, followed to its verdict."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_pods, complete_runs
from orchestrator.cli.shared import Json, as_the_person, emit, hint, look_at, open_source, say, whole
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.jobs.jobfile import LoadedJob
    from orchestrator.runs.source import Source
    from orchestrator.runs.waiting import Live


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

    live = Live(silent=json)
    if run is None:
        from orchestrator.jobs.parity import parity_job

        number = 0 if seed is None else whole(seed, "--seed")
        loaded = parity_job(suites or [], pod=pod, full=full, only=only, device=device, seed=number, python=python)
        code = _judge(loaded, live, to_file=to_file, json=json)
    else:
        asked = [suites, pod, full, only, device, seed, python]
        if any(asked):
            raise UsageError(
                "E-CLI-007", "--run names a run that there is: nothing else can be asked of it", where="orch parity",
                fix=f"orch parity --run {run}",
            )  # fmt: skip
        source = open_source(run)
        try:
            code = _answer(source, live, to_file=to_file, json=json)
        finally:
            source.close()
    raise typer.Exit(code)


def _judge(loaded: LoadedJob, live: Live, *, to_file: bool, json: bool) -> int:
    """Launch, then as of a run that there is."""
    from orchestrator.cli.launch import prepare_run, stages, submit_run

    prepared = prepare_run(loaded, live, Path.cwd())
    try:
        for warning in prepared.plan.warnings:
            hint(f"warning: {warning}")
        source = submit_run(prepared, stages(live), json=json, quiet=True)
        live.line(f"{source.run.run_id}  submitted on pod {prepared.plan.placement.pod}")
        return _answer(source, live, to_file=to_file, json=json, fresh=True)
    finally:
        prepared.close()


def _answer(source: Source, live: Live, *, to_file: bool, json: bool, fresh: bool = False) -> int:
    """Wait for the end of the run where it has not ended, bring its rows home, and tell them; the exit code."""
    from orchestrator.runs.follow import follow

    if not fresh:
        look_at(source)
        _refuse_other_kinds(source)
    try:
        if fresh or not source.view().ended:
            follow(source, live)
        _bring_home(source)
    except KeyboardInterrupt:
        live.line("")
        ident = source.run.run_id
        hint(
            f"detached; run {ident} goes on\n"
            f"  orch parity --run {ident}   back to it, and its verdict\n"
            f"  orch halt {ident}           stop it between two cells"
        )
        return CliExit.INTERRUPTED
    return _tell(source, to_file=to_file, json=json)


def _refuse_other_kinds(source: Source) -> None:
    kind = source.view().info.get("kind")
    if kind != "parity":
        raise UsageError(
            "E-PARITY-012", f"run {source.run.run_id} judges no kernels: its kind is {kind or 'unknown'}",
            where="--run", value=source.run.run_id, expected="a run of kind parity", fix="orch parity",
        )  # fmt: skip


def _bring_home(source: Source) -> None:
    """All rows and the table; what is here already does not travel again. Without the pod: what is here."""
    from orchestrator.runs.source import fetch
    from pods.remote.runfiles import name_in
    from workloads.contract.errors import OrchError

    if not source.far:
        return
    run = source.run
    names = (run.parity_rows, run.parity_report, run.rank_log(0))
    try:
        fetch(source, "status", {name_in(run, path): None for path in names})
    except OrchError as e:
        hint(f"note: the rows were not all brought home: {e.what}")


def _tell(source: Source, *, to_file: bool, json: bool) -> int:
    from orchestrator.runs.follow import exit_code, last_words
    from orchestrator.runs.parity import GO, result_of
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
