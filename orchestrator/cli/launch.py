"""`orch init` and `orch launch`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import AllowChange, Json, MaybeJob, as_the_person, emit, hint, home, look_at, say
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.jobs.jobfile import LoadedJob
    from orchestrator.jobs.launch import OnTime, Prepared
    from orchestrator.jobs.start import Asked
    from orchestrator.runs.source import Source
    from orchestrator.runs.waiting import Live


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where job.yaml goes.")] = Path(),
    json: Json = False,
) -> None:
    """Write a commented job.yaml, and pods.yaml at home. Overwrites nothing."""
    from orchestrator.jobs.init import write_templates

    with as_the_person():
        files = write_templates(directory.absolute(), home())
    if home().inventory in files:
        home().inventory.chmod(0o600)
    if json:
        emit({"v": 1, "files": [str(f) for f in files]})
    else:
        say(*(f"wrote {f}" for f in files), f"next:  orch launch {shlex.quote(str(directory / 'job.yaml'))} --dry-run")


def launch(
    ctx: typer.Context,
    job: MaybeJob = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key of the job.")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="The run's name.")] = None,
    run_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="A run id; launched twice it is one run.")
    ] = None,
    pods: Annotated[
        list[str] | None, typer.Option("--pod", metavar="POD", help="Where it runs, instead of the job's `pods`.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="PATH", help="Begin with this checkpoint, or a run's newest one.")
    ] = None,
    allow: AllowChange = None,
    synthetic: Annotated[
        bool,
        typer.Option("--synthetic-on-fail", help="Train on made-up tokens, loudly, once the data cannot be had."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; touch nothing.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay until the run ends; Ctrl-C leaves it running.")
    ] = False,
    json: Json = False,
) -> None:
    """Start a run of JOB, or of any command: `orch launch --name mine -- python my_train.py --lr 3e-4`."""
    cwd = Path.cwd()
    loaded = _load(job, ctx.obj, sets or [], name, pods or [], cwd, synthetic=synthetic)
    from orchestrator.runs.waiting import Live

    began = time.monotonic()
    live = Live(silent=json or dry_run)
    prepared = prepare_run(loaded, live, cwd, run_id, resume=_start(resume, allow or []))
    try:
        if dry_run:
            plan = prepared.plan
            emit({"v": 1, "plan": plan.as_dict()}) if json else say(plan.render())
            return
        for warning in prepared.plan.warnings:
            hint(f"warning: {warning}")
        run = submit_run(prepared, stages(live), json=json, quiet=json and follow)
        if follow:
            raise typer.Exit(_follow(run, began, json=json))
    finally:
        prepared.close()


def _start(resume: str | None, allow: list[str]) -> Asked | None:
    from orchestrator.jobs.start import Asked, checked_changes

    if resume is None and allow:
        raise UsageError(
            "E-CLI-006", "--allow-config-change is for a run that begins with a checkpoint", where="orch launch",
            fix="orch launch JOB --resume PATH --allow-config-change train.lr",
        )  # fmt: skip
    return None if resume is None else Asked(resume, checked_changes(allow, "--allow-config-change"))


def prepare_run(
    loaded: LoadedJob, live: Live, cwd: Path, run_id: str | None = None, resume: Asked | None = None
) -> Prepared:
    """The plan of a launch, while `live` tells how far the looking is. Ctrl-C: nothing was submitted."""
    import os

    from orchestrator.jobs.launch import prepare

    try:
        return prepare(
            loaded, run_id=run_id, home=home(), cwd=cwd, environ=os.environ, resume=resume, on_time=stages(live),
            say=lambda text: live.status(f"    {text}", time.monotonic()),
        )  # fmt: skip
    except KeyboardInterrupt:
        live.line("")
        hint("interrupted; nothing was submitted")
        raise


def stages(live: Live) -> OnTime:
    from orchestrator.runs.render import duration

    return lambda stage, seconds: live.line(f"  {stage:<16} {duration(seconds)}")


def _load(
    job: str | None, tail: list[str] | None, sets: list[str], name: str | None, pods: list[str], cwd: Path,
    *, synthetic: bool,
) -> LoadedJob:  # fmt: skip
    if (job is None) == (tail is None):
        raise UsageError(
            "E-CLI-006", "name a job or give a command after `--`" + (", not both" if job else ""), where="orch launch",
            fix="orch launch tiny        or        orch launch --name mine -- python my_train.py",
        )  # fmt: skip
    if tail == []:
        raise UsageError(
            "E-CLI-006", "no command follows `--`", where="orch launch", fix="orch launch -- python my_train.py"
        )
    if tail is not None and synthetic:
        raise UsageError(
            "E-CLI-006", "--synthetic-on-fail is for a job whose data orch reads, and a command reads its own",
            where="orch launch", fix="orch launch JOB --synthetic-on-fail",
        )  # fmt: skip
    from orchestrator.jobs.jobfile import command_job, load_job

    if tail is not None:
        return command_job(tail, name=name, sets=sets, pods=pods, cwd=cwd)
    return load_job(str(job), sets=sets, name=name, pods=pods, cwd=cwd, synthetic_on_fail=synthetic)


def submit_run(prepared: Prepared, on_time: OnTime, *, json: bool, quiet: bool) -> Source:
    """Carry the plan out and tell it, unless `quiet`; the run, to be followed."""
    from orchestrator.jobs.launch import is_there, submit

    run = prepared.run
    try:
        created = submit(prepared, on_time)
    except KeyboardInterrupt:
        if is_there(prepared):
            goes_on(run.run_id)
        else:
            hint("interrupted; nothing was submitted")
        raise
    source = _source(prepared)
    if quiet:
        return source
    if json:
        emit({"v": 1, "run": run.run_id, "created": created, "dir": str(run.path), "pod": prepared.plan.placement.pod})
        return source
    _submitted(prepared, source, created=created)
    return source


def _source(prepared: Prepared) -> Source:
    """The run, to be followed over the connection that is there already; what must not be shown of it is hidden."""
    from orchestrator.runs.redact import redactor
    from orchestrator.runs.render import hide
    from orchestrator.runs.source import FarSource, LocalSource

    if prepared.secrets:
        hide(redactor(prepared.secrets))
    ident = prepared.plan.run_id
    if not prepared.far:
        return LocalSource(prepared.home, prepared.home.run(ident))
    return FarSource(
        prepared.home, prepared.home.mirrored(ident), prepared.plan.placement.pod, lambda: prepared.site.pod
    )


def _submitted(prepared: Prepared, source: Source, *, created: bool) -> None:
    from orchestrator.runs.report import next_block, next_lines

    if source.far:
        look_at(source)
    view = source.view()
    told = "submitted" if created else f"was there already ({view.state}); nothing was launched"
    pod = f" on pod {source.pod}" if source.far else ""
    say(
        f"{source.run.run_id}  {told}",
        f"  directory   {prepared.run.path}{pod}",
        *next_block(next_lines(view)),
        "",
    )


def _follow(run: Source, began: float, *, json: bool) -> CliExit:
    from orchestrator.runs.follow import exit_code, follow, last_words
    from orchestrator.runs.report import ending, ending_json
    from orchestrator.runs.waiting import Live

    live = Live(silent=json)
    try:
        view = follow(run, live)
    except KeyboardInterrupt:
        live.line("")
        goes_on(run.run.run_id)
        return CliExit.INTERRUPTED
    took = time.monotonic() - began
    if json:
        emit(ending_json(view, took))
    else:
        say(*last_words(view), *ending(view, took))
    return exit_code(view)


def goes_on(run_id: str) -> None:
    hint(
        f"detached; run {run_id} goes on\n"
        f"  orch logs {run_id} -f   follow it\n"
        f"  orch halt {run_id}      checkpoint and stop it"
    )
