"""`orch smoke`: a short supervised run of a job, then its gates: go or no-go. Or those of a run or of files."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_pods, complete_runs
from orchestrator.cli.judging import Kind, bring_home, judge, refuse_other_kinds
from orchestrator.cli.shared import Json, MaybeJob, as_the_person, emit, hint, look_at, open_source, say, whole
from workloads.contract.errors import LocalError, OrchError, UsageError, escape
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.smoke import Smoke
    from orchestrator.runs.smokecompare import Compared
    from orchestrator.runs.source import Source

KIND = Kind(
    "train", "E-SMOKE-009", "makes no training steps", "its gates", "checkpoint and stop it",
    lambda run: (run.training_csv, run.env_json), command="smoke", others=("command",),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is to be told of the rows, wherever they come from. `base`: the baseline that was read, and its name."""

    min_tps: float | None
    save: Path | None
    base: tuple[dict[str, Any], str] | None
    tolerance: float | None
    to_file: bool
    json: bool


def smoke(
    job: MaybeJob = None,
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="N", help="How short; default 250, or the job's own if fewer.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key of the job.")] = None,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="POD", help="Where, instead of the job's `pods`.", autocompletion=complete_pods),
    ] = None,
    min_tps: Annotated[
        str | None, typer.Option("--min-tps", metavar="X", help="Tokens/s that the last 100 rows must reach.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save-baseline", metavar="FILE", help="Keep it to compare with; adds to a file.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare-baseline", metavar="FILE", help="Exit 1 when it became slower or worse.")
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option("--tolerance", metavar="PERCENT", help="Of a drop; default 2%, and 5% with fewer than 3 runs."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="A run that there is, as it is now.", autocompletion=complete_runs),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Rows of any trainer.")] = None,
    heartbeat: Annotated[
        Path | None, typer.Option("--heartbeat", metavar="FILE", help="Beats of any trainer: JSON, a line each.")
    ] = None,
    to_file: Annotated[bool, typer.Option("--file-report", help="File a report below ./reports.")] = False,
    json: Json = False,
) -> None:
    """Run JOB for a few steps and judge them: does it learn, is it fast, do its data arrive? Exit 0: go, 1: no-go."""
    _refuse_clash(job, run, csv or heartbeat, [steps, sets, pod])
    asked = _asked(min_tps, save, compare, tolerance, to_file=to_file, json=json)
    if csv or heartbeat:
        from orchestrator.runs.smoke import of_files

        found = of_files(csv, heartbeat, min_tps=asked.min_tps, command=_command(), now=time.time())
        raise typer.Exit(_tell(found, asked))
    if run is not None:
        raise typer.Exit(_of_run(run, asked))
    raise typer.Exit(_launch(str(job), steps, sets or [], pod, asked))


def _refuse_clash(job: str | None, run: str | None, files: Path | None, launching: list[object]) -> None:
    named = [x for x in (job, run, files) if x is not None]
    if len(named) != 1:
        raise UsageError(
            "E-SMOKE-010", "name one of them: a JOB, a run, or files" + ("" if named else " to be judged"),
            where="orch smoke", fix="orch smoke tiny   or   orch smoke --run RUN   or   orch smoke --csv training.csv",
        )  # fmt: skip
    if job is None and any(launching):
        raise UsageError(
            "E-SMOKE-010", "--steps, --set and --pod are for a JOB that is run now", where="orch smoke",
            fix="orch smoke JOB --steps N   or   orch smoke --run RUN",
        )  # fmt: skip


def _asked(
    min_tps: str | None, save: Path | None, compare: Path | None, tolerance: str | None, *, to_file: bool, json: bool
) -> Asked:
    """Everything that can be wrong is found before anything is launched."""
    from orchestrator.cli.bench import percent
    from orchestrator.runs.baseline import read

    base = (read(compare), str(compare)) if compare is not None else None
    if save is not None:
        if not save.absolute().parent.is_dir() or save.is_dir():
            raise LocalError(
                "E-SMOKE-002", "the baseline cannot be written: that is no place for a file", where=str(save),
                fix="--save-baseline baseline.json",
            )  # fmt: skip
        if save.exists():
            read(save)
    limit = None if tolerance is None else percent(tolerance, "orch smoke")
    return Asked(None if min_tps is None else _rate(min_tps), save, base, limit, to_file, json)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e18:
        raise UsageError(
            "E-CLI-004", f"--min-tps cannot be '{escape(text, 40)}'", value=text, expected="tokens a second, above 0"
        )
    return value


def _launch(job: str, steps: str | None, sets: list[str], pod: str | None, asked: Asked) -> int:
    import json

    from orchestrator.jobs.smoke import STEPS, smoke_job
    from orchestrator.runs.baseline import Subject, job_fields, refuse_others
    from orchestrator.runs.waiting import Live

    number = None if steps is None else max(whole(steps, "--steps"), 1)
    most = max((r["rows"] for r in asked.base[0]["runs"]), default=STEPS) if asked.base else STEPS
    loaded = smoke_job(job, steps=number, sets=sets, pods=[pod] if pod else [], cwd=Path.cwd(), most=most)
    fields = job_fields(json.loads(loaded.spec.model_dump_json()))
    for there, named, option in _baselines(asked):  # the machine is known only where it runs
        refuse_others(there, Subject(loaded.spec.name, fields, there["machine"]), named, option)
    return judge(KIND, loaded, Live(silent=asked.json), partial(_tell_run, asked=asked, fresh=True), json=asked.json)


def _baselines(asked: Asked) -> list[tuple[dict[str, Any], str, str]]:
    from orchestrator.runs.baseline import read

    found = [(*asked.base, "--compare-baseline")] if asked.base else []
    return found + (
        [(read(asked.save), str(asked.save), "--save-baseline")] if asked.save and asked.save.exists() else []
    )


def _of_run(run: str, asked: Asked) -> int:
    source = open_source(run)
    try:
        look_at(source)
        refuse_other_kinds(KIND, source)
        bring_home(KIND, source)
        return _tell_run(source, asked=asked, fresh=False)
    finally:
        source.close()


def _tell_run(source: Source, *, asked: Asked, fresh: bool) -> int:
    from orchestrator.runs.follow import last_words
    from orchestrator.runs.report import ending
    from orchestrator.runs.smoke import of_run
    from workloads.contract.states import RunState

    view = source.view()
    if not asked.json and view.state == RunState.FAILED:
        say(*last_words(view), *ending(view, None), "")
    return _tell(of_run(view, source.pod, min_tps=asked.min_tps, command=_command(), fresh=fresh), asked)


def _tell(found: Smoke, asked: Asked) -> int:
    from orchestrator.runs.render import screen_width

    trouble, compared = _compared(found, asked)
    if asked.json and trouble is not None:  # one document: the error
        raise trouble
    go = found.go and (compared is None or compared.good)
    saved = _saved(found, asked, go=go and trouble is None)
    path = _filed(found, compared) if asked.to_file else None
    if asked.json:
        more = {"baseline": compared and compared.as_json(), "saved": saved and str(asked.save)}
        verdict = {"verdict": "go" if go else "no-go"}
        emit({**found.as_json(), **verdict, **more, "report": None if path is None else str(path)})
    else:
        say(*found.lines(screen_width()))
        say(*([] if compared is None else [*compared.lines(), ""]))
        say(*([f"baseline: {asked.save} ({saved} run{'s' * (saved > 1)})"] if saved else []))
        say(*([] if path is None else [f"report: {path}"]))
        say(f"{'go' if go else 'no-go'}: {found.why}" + ("" if compared is None else f"; {compared.lines()[-1]}"))
    if trouble is not None:
        raise trouble
    return CliExit.OK if go else CliExit.RUN_FAILED


def _compared(found: Smoke, asked: Asked) -> tuple[OrchError | None, Compared | None]:
    """The comparison, or why there is none: raised once the gates were told."""
    from orchestrator.runs.baseline import entry
    from orchestrator.runs.smokecompare import compare

    if asked.base is None:
        return None, None
    there, named = asked.base
    try:
        return None, compare(there, found.subject, entry(found.steps, found.facts), asked.tolerance, named)
    except OrchError as e:
        return e, None
    except ValueError as e:
        return _too_few(e, named), None


def _too_few(why: ValueError, where: str) -> OrchError:
    from workloads.contract.errors import ConflictError

    return ConflictError(
        "E-SMOKE-011", f"there are too few rows for a baseline: {why}", where=where, fix="orch smoke JOB --steps 250"
    )


def _saved(found: Smoke, asked: Asked, *, go: bool) -> int:
    """How many runs the baseline has now; 0: nothing was saved."""
    from orchestrator.runs.baseline import entry, save

    if asked.save is None:
        return 0
    if not go:
        hint("note: no baseline is kept of a run that is no-go")
        return 0
    try:
        with as_the_person():
            return save(asked.save, found.subject, entry(found.steps, found.facts))
    except ValueError as e:
        raise _too_few(e, str(asked.save)) from e


def _filed(found: Smoke, compared: Compared | None) -> Path:
    from orchestrator.runs.smokereport import file_report

    with as_the_person():
        return file_report(found, compared, Path.cwd(), time.time())


def _command() -> str:
    """What was typed."""
    return shlex.join(["orch", *sys.argv[1:]])
