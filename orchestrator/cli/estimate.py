"""`orch estimate`: GPU memory, tokens/s, time and disk of a training job, or of a run beside what it really takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_runs
from orchestrator.cli.judging import Kind, bring_home, refuse_other_kinds
from orchestrator.cli.shared import Json, MaybeJob, emit, look_at, open_source, say, whole
from workloads.contract.errors import UsageError

if TYPE_CHECKING:
    from workloads.contract.gpusheets import Sheet

KIND = Kind(
    "train", "E-EST-002", "trains no model of ours", "", "", lambda run: (run.env_json,), command="estimate"
)  # fmt: skip


def estimate(
    job: MaybeJob = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key of the job.")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="One GPU, such as h200; default: all that are known.")
    ] = None,
    ranks: Annotated[str | None, typer.Option("--ranks", metavar="N", help="Where the job says `auto`.")] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="A run, beside what it takes.", autocompletion=complete_runs),
    ] = None,
    json: Json = False,
) -> None:
    """What a training job will take, before anything is launched: memory by part, speed and time, checkpoints."""
    if (job is None) == (run is None):
        raise UsageError(
            "E-EST-001", "name a job or a run" + ("" if job is None else ", not both"), where="orch estimate",
            fix="orch estimate 125m --gpu h200   or   orch estimate --run RUN",
        )  # fmt: skip
    if run is not None:
        _of_run(run, [sets, gpu, ranks], json=json)
        return
    from orchestrator.jobs.jobfile import load_job
    from orchestrator.runs.estimate import estimate as made

    sheets = _sheets(gpu)
    spec = load_job(str(job), sets=sets or [], cwd=Path.cwd()).spec
    if spec.kind != "train":
        raise UsageError(
            "E-EST-002", f"a job of kind {spec.kind} trains no model of ours", where=str(job),
            expected="kind: train", fix="orch estimate 125m",
        )  # fmt: skip
    found = made(spec, ranks=None if ranks is None else max(whole(ranks, "--ranks"), 1), sheets=sheets)
    emit(found.as_json()) if json else say(*found.lines())


def _sheets(gpu: str | None) -> tuple[Sheet, ...]:
    from workloads.contract.gpusheets import SHEETS, sheet_of

    if gpu is None:
        return SHEETS
    sheet = sheet_of(gpu)
    if sheet is None:
        known = ", ".join(s.short for s in SHEETS)
        raise UsageError(
            "E-EST-004", "no data sheet of that GPU is known", where="--gpu", value=gpu, expected=known,
            fix=f"--gpu {SHEETS[0].short}",
        )  # fmt: skip
    return (sheet,)


def _of_run(run: str, others: list[object], *, json: bool) -> None:
    from orchestrator.cli.judging import refuse_anything_beside_run
    from orchestrator.runs.estimaterun import as_json, held_against, of_run

    refuse_anything_beside_run(KIND, run, others)
    source = open_source(run)
    try:
        look_at(source)
        refuse_other_kinds(KIND, source)
        bring_home(KIND, source)
        found, took = of_run(source.view())
    finally:
        source.close()
    if json:
        emit(as_json(found, took))
    else:
        say(*found.lines(), "", f"run {source.run.run_id} on {took.gpu or 'no GPU'}", *held_against(found, took))
