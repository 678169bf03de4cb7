"""The report of a smoke, filed on request as one of a Test Engineer. Called by `orch smoke --file-report`."""

from __future__ import annotations

import shlex
from pathlib import Path

from orchestrator.runs.render import one_line
from orchestrator.runs.smoke import Smoke, gates_table
from orchestrator.runs.smokecompare import Compared
from orchestrator.runs.testreport import file_text


def file_report(smoke: Smoke, compared: Compared | None, folder: Path, now: float) -> Path:
    """The file that was made in `folder`/reports. LocalError when it cannot be."""
    about = f"Smoke of {smoke.subject.name}" + (f" on {smoke.pod}" if smoke.pod else "")
    return file_text(about, folder, now, lambda *named: _text(smoke, compared, *named))


def _text(smoke: Smoke, compared: Compared | None, subject: str, day: str, version: int) -> str:
    lines = [f"# {subject}", "", f"{day}, version {version}."]
    if version > 1:
        lines.append(f"It replaces version {version - 1} of the same day.")
    go = smoke.go and (compared is None or compared.good)
    said = smoke.why if compared is None else f"{smoke.why}; {compared.lines()[-1]}"
    lines += [
        "",
        "## Verdict",
        "",
        f"**{'go' if go else 'no-go'}: {said}**",
        "",
        "## Objectives",
        "",
        *_objectives(smoke),
    ]
    lines += ["", "## Environment", "", *(f"- {name}: {one_line(text)}" for name, text in smoke.told_facts())]
    lines += ["", "## Exact commands", "", "```", one_line(str(smoke.facts.get("command", "-"))), "```", *_argv(smoke)]
    lines += ["", "## Results", "", "```", *gates_table(smoke.gates), "```"]
    if smoke.notes:
        lines += ["", *(f"- {one_line(note)}" for note in smoke.notes)]
    if compared is not None:
        lines += ["", "## Comparison", "", "```", *compared.lines(), "```"]
    return "\n".join([*lines, "", "## Evidence", "", *(f"- `{path}`" for path in _evidence(smoke)), ""])


def _objectives(smoke: Smoke) -> list[str]:
    what = "the job" if smoke.view is not None else "the training that wrote these files"
    return [
        f"Whether {what} may go on to its full length: enough rows of steps, a loss that falls, tokens/s as",
        "asked for, data that arrives in time and, for sparse attention, gates that did not collapse. The limits are",
        "the smoke gates of orch; a gate whose figures were not told is not judged. It is go when none failed.",
    ]


def _argv(smoke: Smoke) -> list[str]:
    argv = smoke.view.info.get("argv") if smoke.view is not None else None
    if not isinstance(argv, list):
        return []
    return ["", "In each rank:", "", "```", one_line(shlex.join(map(str, argv))), "```"]


def _evidence(smoke: Smoke) -> list[str]:
    if smoke.view is None:
        return [str(path) for path in smoke.files]
    run = smoke.view.run
    found = [*smoke.files, run.run_json, run.env_json, run.events, run.ledger, run.rank_log(0)]
    there = [str(path) for path in found if path.exists()]
    return there if smoke.view.sight is None else [*there, f"on the pod: {smoke.view.sight.path}"]
