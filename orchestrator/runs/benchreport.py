"""The report of a bench run, filed on request as one of a Test Engineer. Called by `orch bench --file-report`."""

from __future__ import annotations

from pathlib import Path

from orchestrator.runs.bench import Result, notes, rows_table
from orchestrator.runs.benchcompare import Comparison
from orchestrator.runs.judged import ordered
from orchestrator.runs.render import one_line
from orchestrator.runs.testreport import file_text


def file_report(result: Result, compared: Comparison | None, folder: Path, now: float) -> Path:
    """The file that was made in `folder`/reports. LocalError when it cannot be."""
    return file_text(f"Benchmark on {result.pod}", folder, now, lambda *named: _text(result, compared, *named))


def _text(result: Result, compared: Comparison | None, subject: str, day: str, version: int) -> str:
    d, run = result.data, result.view.run
    lines = [f"# {subject}", "", f"{day}, version {version}."]
    if version > 1:
        lines.append(f"It replaces version {version - 1} of the same day.")
    lines += ["", "## Verdict", "", f"**{_verdict(result, compared)}**", "", "## Objectives", "", *_objectives(result)]
    lines += ["", "## Environment", ""]
    kept = ("device", "software", "code", "timing")
    lines += [f"- {name}: {one_line(text)}" for name, text in result.facts() if name in kept]
    lines.append(f"- pod: {result.pod}, attempt {result.view.attempt}")
    lines += ["", "## Exact commands", "", "```", one_line(str(d.get("command", "-"))), "```"]
    lines += ["", "In the rank:", "", "```", *_argv(result), "```", "", "## Results", ""]
    lines += ["```", *rows_table(ordered(result.rows)), "```"]
    if told := notes(result.rows):
        lines += ["", *(f"- {text}" for text in told)]
    if compared is not None:
        lines += ["", "## Comparison", "", "```", *compared.lines(), "```"]
    evidence = (
        run.verdict, run.bench_rows, run.bench_report, run.bench_page, run.thresholds, run.run_json, run.rank_log(0)
    )  # fmt: skip
    lines += ["", "## Evidence", "", *(f"- `{p}`" for p in evidence if p.exists())]
    if result.view.sight is not None:
        lines.append(f"- on the pod: `{result.view.sight.path}`")
    return "\n".join([*lines, ""])


def _verdict(result: Result, compared: Comparison | None) -> str:
    if result.verdict is None:
        return f"no verdict: the run is {result.view.state} ({one_line(result.view.reason)})"
    said = f"{result.verdict.verdict}: {one_line(result.verdict.why)}"
    return said if compared is None else f"{said}; {compared.lines()[-1]}"


def _objectives(result: Result) -> list[str]:
    d = result.data
    suites = ", ".join(map(str, d.get("suites") or ["-"]))
    size = "a few cases of" if d.get("quick") else "every case of"
    return [
        f"How fast {size} {suites} are on this device and with this software, seed {d.get('seed', '-')}: beside what",
        "the memory can do, measured first in the same process, and beside every peer that imports there. A case is",
        "timed only when its answer is right; the verdict is go when every case is. A missed goal fails nothing.",
    ]


def _argv(result: Result) -> list[str]:
    argv = result.view.info.get("argv")
    return [one_line(" ".join(map(str, argv)))] if isinstance(argv, list) else ["-"]
