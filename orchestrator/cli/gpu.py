"""`orch gpu`: what the GPUs of a pod really are and do, in half a minute. A supervised run, followed to its page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_pods, complete_runs
from orchestrator.cli.judging import Kind, answer, judge, refuse_anything_beside_run
from orchestrator.cli.shared import Json, emit, say
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.source import Source

KIND = Kind(
    "bench", "E-GPU-001", "measures nothing", "back to it, and its page", "stop it between two figures",
    lambda run: (run.bench_rows, run.bench_report, run.rank_log(0)), command="gpu",
)  # fmt: skip


def gpu(
    pod: Annotated[
        str | None,
        typer.Argument(metavar="[POD]", help="Where; default: this machine.", autocompletion=complete_pods),
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="An interpreter there; default: the pod's.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="The page of a run that there is.", autocompletion=complete_runs),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a pod's GPUs beside healthy ones of their model. Exit 1: a figure is below, wrong, or there is no GPU."""
    from orchestrator.runs.waiting import Live

    live, tell = Live(silent=json), partial(_tell, json=json)
    if run is None:
        from orchestrator.jobs.gpu import gpu_job

        code = judge(KIND, gpu_job(pod, python), live, tell, json=json)
    else:
        refuse_anything_beside_run(KIND, run, [pod, python])
        code = answer(KIND, run, live, tell)
    raise typer.Exit(code)


def _tell(source: Source, *, json: bool) -> int:
    from orchestrator.runs.bench import result_of
    from orchestrator.runs.follow import exit_code, last_words
    from orchestrator.runs.gpu import EXPECTED, UNKNOWN, Page
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import ending

    view = source.view()
    page = Page(result_of(view, source.pod))
    if view.ended and page.result.rows and not page.rows:
        raise UsageError(
            "E-GPU-002", f"run {source.run.run_id} is a benchmark of something else: it measured no device",
            where="--run", value=source.run.run_id, expected="a run of `orch gpu` or `orch bench device`",
            fix=f"orch bench --run {source.run.run_id}",
        )  # fmt: skip
    if json:
        emit(page.as_json())
    else:
        if page.verdict is None:  # it was halted, or died: what it measured so far is no answer
            say(*last_words(view), *ending(view, None), "")
        say(*page.lines(screen_width()))
    if page.verdict is None:
        return exit_code(view) or CliExit.RUN_FAILED
    return CliExit.OK if page.verdict in (EXPECTED, UNKNOWN) else CliExit.RUN_FAILED
