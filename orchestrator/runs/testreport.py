"""Reports of runs, filed on request: `reports/<day> Test Engineer Report - <Subject> v<N>.md`; that of a parity run.

One a subject and day counts: a second one is v2 and says that it replaces v1; none is overwritten. Called by
`orch parity --file-report`; `orchestrator.runs.benchreport` files with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.runs.judged import is_good, ordered
from orchestrator.runs.parity import Result, cells_table
from orchestrator.runs.render import harmless, one_line
from workloads.contract.errors import LocalError

FOLDER = "reports"
MAX_VERSIONS = 1000
TextOf = Callable[[str, str, int], str]


def file_report(result: Result, folder: Path, now: float) -> Path:
    """The file that was made in `folder`/reports. LocalError when it cannot be."""
    return file_text(f"Kernel parity on {result.pod}", folder, now, lambda *named: _text(result, *named))


def file_text(about: str, folder: Path, now: float, text_of: TextOf) -> Path:
    """File what `text_of` writes of (subject, day, version). LocalError when it cannot be."""
    subject = re.sub(r"[^A-Za-z0-9 ._-]", "-", about)
    day = time.strftime("%Y-%m-%d", time.localtime(now))
    reports = folder / FOLDER
    try:
        reports.mkdir(exist_ok=True)
        for version in range(_newest(reports, day, subject) + 1, MAX_VERSIONS):
            path = reports / _name(day, subject, version)
            try:
                with path.open("x", encoding="utf-8") as f:
                    f.write(harmless(text_of(subject, day, version)))
            except FileExistsError:  # somebody else filed one this very moment
                continue
            return path
    except OSError as e:
        raise LocalError(
            "E-PARITY-009", f"the report cannot be filed: {e.strerror}", where=str(reports),
            fix="file it from a directory that you may write to",
        ) from e  # fmt: skip
    raise LocalError("E-PARITY-009", "there are a thousand reports of today", where=str(reports))


def _name(day: str, subject: str, version: int) -> str:
    return f"{day} Test Engineer Report - {subject} v{version}.md"


def _newest(reports: Path, day: str, subject: str) -> int:
    pattern = re.compile(re.escape(_name(day, subject, 0)).replace("v0", r"v(\d{1,4})"))
    return max((int(m[1]) for p in reports.iterdir() if (m := pattern.fullmatch(p.name))), default=0)


def _text(result: Result, subject: str, day: str, version: int) -> str:
    d, run = result.data, result.view.run
    lines = [f"# {subject}", "", f"{day}, version {version}."]
    if version > 1:
        lines.append(f"It replaces version {version - 1} of the same day.")
    lines += ["", "## Verdict", "", f"**{_verdict(result)}**", "", "## Objectives", "", *_objectives(result)]
    lines += ["", "## Environment", ""]
    lines += [f"- {name}: {one_line(text)}" for name, text in result.facts() if name in ("device", "software", "code")]
    lines.append(f"- pod: {result.pod}, attempt {result.view.attempt}")
    lines += ["", "## Exact commands", "", "```", str(d.get("command", "-")), "```"]
    lines += ["", "In the rank:", "", "```", *_argv(result), "```", "", "## Results", ""]
    lines += ["```", *cells_table(ordered(result.rows)), "```"]
    wrong = [r for r in ordered(result.rows) if not is_good(r)]
    if wrong:
        lines += ["", "Each wrong cell alone, on the same pod or by hand on such a machine:", "", "```"]
        lines += [line for r in wrong for line in (result.alone(r), one_line(str(r.get("command", "-"))))] + ["```"]
    evidence = (run.verdict, run.parity_rows, run.parity_report, run.run_json, run.events, run.rank_log(0))
    lines += ["", "## Evidence", "", *(f"- `{p}`" for p in evidence if p.exists())]
    if result.view.sight is not None:
        lines.append(f"- on the pod: `{result.view.sight.path}`")
    return "\n".join([*lines, ""])


def _verdict(result: Result) -> str:
    if result.verdict is None:
        return f"no verdict: the run is {result.view.state} ({one_line(result.view.reason)})"
    return f"{result.verdict.verdict}: {one_line(result.verdict.why)}"


def _objectives(result: Result) -> list[str]:
    d = result.data
    suites = ", ".join(map(str, d.get("suites") or ["-"]))
    which = f"the cell {d['only']}" if d.get("only") else "the whole matrix" if d.get("full") else "the short matrix"
    return [
        f"Whether the Triton kernels of {suites} give what their reference gives in double precision, on this device",
        f"and with this software: {which}, seed {d.get('seed', '-')}. A cell is right when its largest error is at",
        "most twice that of PyTorch in the same dtype, plus 1e-5. The answer is go when every cell is right.",
    ]


def _argv(result: Result) -> list[str]:
    argv = result.view.info.get("argv")
    return [one_line(" ".join(map(str, argv)))] if isinstance(argv, list) else ["-"]
