"""`orch bench`: how fast is this pod, and did anything become slower? A supervised run, followed to its table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_pods, complete_runs
from orchestrator.cli.judging import Kind, answer, bring_home, judge, refuse_anything_beside_run, refuse_other_kinds
from orchestrator.cli.shared import Json, as_the_person, emit, hint, look_at, open_source, say, whole
from workloads.contract.errors import ConflictError, LocalError, OrchError, UsageError, escape
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.bench import Result
    from orchestrator.runs.benchcompare import Comparison
    from orchestrator.runs.judged import Row
    from orchestrator.runs.source import Source
    from workloads.contract.rundir import RunDir

MAX_TOLERANCE = 1000.0


def _files(run: RunDir) -> list[Path]:
    from workloads.contract.config.job import BENCH_SUITES

    plots = [run.bench_plot(suite) for suite in BENCH_SUITES]
    return [run.bench_rows, run.bench_report, run.bench_page, run.thresholds, run.rank_log(0), *plots]


KIND = Kind(
    "bench", "E-BENCH-012", "measures nothing", "back to it, and its table", "stop it between two cases", _files
)


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with: named as it was typed, and the rows that were found there."""

    named: str
    rows: tuple[Row, ...]
    tolerance: float
    force: bool


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...",
            help="bandwidth, kv-decode, decoupled, device, train-step, comm; default: the first three.",
        ),
    ] = None,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="POD", help="Where; default: this machine.", autocompletion=complete_pods),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few cases and replays: a look.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="auto|cuda|cpu", help="Default: a GPU where there is one.")
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", metavar="N", help="Of the inputs; default 0.")] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="An interpreter there; default: the pod's.")
    ] = None,
    write_thresholds: Annotated[
        bool, typer.Option("--write-thresholds", help="Have the pod's kernels choose by what was measured.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="FILE|RUN", help="Earlier rows. Exit 1 when a case is slower.")
    ] = None,
    tolerance: Annotated[str, typer.Option("--tolerance", metavar="PERCENT", help="With --compare.")] = "5%",
    force: Annotated[bool, typer.Option("--force", help="Compare different GPU models too.")] = False,
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="The rows as CSV.")] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="The table of a run that there is.", autocompletion=complete_runs),
    ] = None,
    to_file: Annotated[bool, typer.Option("--file-report", help="File a report below ./reports.")] = False,
    json: Json = False,
) -> None:
    """Measure memory and kernels on a pod, beside limits and peers. Exit 1: a case is wrong, or slower than before."""
    from orchestrator.runs.waiting import Live

    base = _baseline(compare, percent(tolerance), force=force)
    _refuse_csv(csv)
    live, tell = Live(silent=json), partial(_tell, base=base, csv=csv, to_file=to_file, json=json)
    if run is None:
        from orchestrator.jobs.bench import bench_job

        number = 0 if seed is None else whole(seed, "--seed")
        loaded = bench_job(
            suites or [], pod=pod, quick=quick, device=device, seed=number, python=python,
            write_thresholds=write_thresholds,
        )  # fmt: skip
        code = judge(KIND, loaded, live, tell, json=json)
    else:
        refuse_anything_beside_run(KIND, run, [suites, pod, quick, device, seed, python, write_thresholds])
        code = answer(KIND, run, live, tell)
    raise typer.Exit(code)


def percent(text: str, verb: str = "orch bench") -> float:
    """`5%`, `5 %` or `5` as 0.05."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_TOLERANCE:
        raise UsageError(
            "E-CLI-004", f"--tolerance cannot be '{escape(text, 40)}'", where=verb, value=text,
            expected="percent, such as 5%", fix="--tolerance 5%",
        )  # fmt: skip
    return value / 100


def _baseline(named: str | None, tolerance: float, *, force: bool) -> Baseline | None:
    """Read before anything is launched: a run of minutes is not to end in a name that was mistyped."""
    if named is None:
        return None
    rows = _rows_of_file(Path(named)) if _is_a_path(named) else _rows_of_run(named)
    if not rows:
        raise LocalError(
            "E-BENCH-013", f"there are no rows of a benchmark in {escape(named, 200)}", where="--compare", value=named,
            expected="bench.jsonl of a run, runbooks/results/kernels.jsonl, or a run", fix="orch runs",
        )  # fmt: skip
    return Baseline(named, rows, tolerance, force)


def _is_a_path(named: str) -> bool:
    return "/" in named or named.endswith((".jsonl", ".json")) or Path(named).is_file()


def _rows_of_file(path: Path) -> tuple[Row, ...]:
    from orchestrator.runs.judged import MAX_ROWS_BYTES, rows_in
    from workloads.contract.files import read_bytes_bounded

    try:
        return rows_in(read_bytes_bounded(path, MAX_ROWS_BYTES))
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else str(e)
        raise LocalError(
            "E-BENCH-014", f"the rows to compare with cannot be read: {why}", where=str(path),
            expected="JSON Lines, a row a case", fix="orch bench --compare FILE, or --compare RUN (see `orch runs`)",
        ) from e  # fmt: skip


def _rows_of_run(named: str) -> tuple[Row, ...]:
    from orchestrator.runs.bench import read_rows

    source = open_source(named)
    try:
        look_at(source)
        refuse_other_kinds(KIND, source, "--compare")
        bring_home(KIND, source)
        return read_rows(source.run)
    finally:
        source.close()


def _refuse_csv(csv: str | None) -> None:
    if csv is None or (Path(csv).parent.is_dir() and not Path(csv).is_dir()):
        return
    raise _no_csv(csv, "it is a directory" if Path(csv).is_dir() else "its directory is not there")


def _no_csv(csv: str, why: str) -> OrchError:
    return LocalError("E-BENCH-015", f"the CSV file cannot be written: {why}", where=csv, fix="--csv rows.csv")


def _tell(source: Source, *, base: Baseline | None, csv: str | None, to_file: bool, json: bool) -> int:
    from orchestrator.runs.bench import as_csv, result_of
    from orchestrator.runs.follow import exit_code, last_words
    from orchestrator.runs.judged import GO
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.report import ending

    view = source.view()
    result = result_of(view, source.pod)
    if csv is not None:
        _write(csv, as_csv(result.rows))
    trouble, compared = _compared(result, base)
    if json and trouble is not None:  # one document: the error, whose fix names the run
        raise trouble
    path = _filed(result, compared) if to_file else None
    if json:
        more = {"compare": compared and compared.as_json(), "report": None if path is None else str(path), "csv": csv}
        emit({**result.as_json(), **more})
    else:
        if result.verdict is None:  # it was halted, or died: what it measured so far is no answer
            say(*last_words(view), *ending(view, None), "")
        width = screen_width()
        say(*result.lines(width), *([] if compared is None else ["", *compared.lines(width)]))
        say(*([] if path is None else [f"report: {path}"]))
    if trouble is not None:
        raise trouble
    if result.verdict is None:
        return exit_code(view) or CliExit.RUN_FAILED
    slower = compared is not None and bool(compared.slower)
    return CliExit.OK if result.verdict.verdict == GO and not slower else CliExit.RUN_FAILED


def _compared(result: Result, base: Baseline | None) -> tuple[OrchError | None, Comparison | None]:
    """The comparison, or why there is none: raised once the table was told, for the measuring is done."""
    from orchestrator.runs.benchcompare import compare, devices, only_of

    if base is None or not result.rows:
        return None, None
    models = devices(result.rows)
    old = base.rows if base.force else only_of(base.rows, models)
    again = f"orch bench --run {result.view.run.run_id} --compare"
    if not old:
        there = ", ".join(devices(base.rows))
        return ConflictError(
            "E-BENCH-016", f"{escape(base.named, 200)} was measured on another GPU model", where="--compare",
            value=there, expected=", ".join(models), fix=f"{again} FILE, or {again} {base.named} --force",
        ), None  # fmt: skip
    try:
        return None, compare(old, result.rows, base.tolerance, base.named)
    except ValueError as e:
        return ConflictError(
            "E-BENCH-017", f"nothing can be compared with {escape(base.named, 200)}: {e}", where="--compare",
            value=", ".join(sorted({str(r["suite"]) for r in base.rows})),
            expected=", ".join(sorted({str(r["suite"]) for r in result.rows})), fix=f"{again} FILE",
        ), None  # fmt: skip


def _write(csv: str, text: str) -> None:
    try:
        with as_the_person():
            Path(csv).write_text(text, encoding="utf-8")
    except OSError as e:
        hint(f"note: the CSV file was not written: {e.strerror}")


def _filed(result: Result, compared: Comparison | None) -> Path:
    from orchestrator.runs.benchreport import file_report

    with as_the_person():
        return file_report(result, compared, Path.cwd(), time.time())
