"""A smoke as it is read: the rows of a run or of plain files, the gates over them, and both as a table or a document.

Pure but for reading files of a run directory. What comes from a pod is read as `orchestrator.runs.smokefiles` does:
tolerant, bounded, and outspoken. Called by `orch smoke` and by its report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs.baseline import Subject, job_fields
from orchestrator.runs.render import figure, one_line, table
from orchestrator.runs.smokefiles import Found, read_beats, read_csv
from orchestrator.runs.views import RunView
from workloads.contract.errors import LocalError
from workloads.contract.files import try_read_json
from workloads.contract.smoke import Gate, Steps, in_words, is_go, judge
from workloads.contract.states import RunState

GO, NO_GO = "go", "no-go"
_WORDS = {"pass": "ok", "fail": "FAILED", "not judged": "not judged"}


@dataclass(frozen=True)
class Smoke:
    """What was looked at and what was found. `run`, `view`, `pod`: None of plain files. `facts`: as in a baseline."""

    subject: Subject
    steps: Steps
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    files: tuple[Path, ...]
    view: RunView | None = None
    pod: str | None = None

    @property
    def go(self) -> bool:
        return is_go(self.gates)

    @property
    def verdict(self) -> str:
        return GO if self.go else NO_GO

    @property
    def why(self) -> str:
        return in_words(self.gates)

    def as_json(self) -> dict[str, Any]:
        """The document of `orch smoke --json`, but for what else was asked."""
        v = self.view
        return {
            "v": 1, "run": v.run.run_id if v else None, "pod": self.pod, "state": v.state if v else None,
            "verdict": self.verdict, "why": self.why, "rows": self.steps.rows,
            "gates": [g.as_json() for g in self.gates], "notes": list(self.notes),
            "machine": dict(self.subject.machine), "job_hash": self.subject.job_hash,
            **{k: self.facts.get(k) for k in ("versions", "commit", "dirty", "command")},
            "dir": str(v.run.path) if v else None, "files": [str(f) for f in self.files],
        }  # fmt: skip

    def lines(self, width: int = 0) -> list[str]:
        """For a person: every gate, what is to be known of the files, where it comes from. The verdict is the CLI's."""
        told = [f"  {one_line(note)}" for note in self.notes]
        facts = [f"  {name:<11} {one_line(text)}" for name, text in self.told_facts()]
        return [*gates_table(self.gates, width), "", *([*told, ""] if told else []), *facts, ""]

    def told_facts(self) -> list[tuple[str, str]]:
        m, f, v = self.subject.machine, self.facts, self.view
        if v is None:
            return [("files", ", ".join(map(str, self.files)))]
        cpus = f"CPU, {m['cpus']} cores" if m.get("cpus") else "CPU"
        device = str(m.get("gpu") or "a GPU") if m.get("device") == "cuda" else cpus
        ranks = m.get("world_size")
        versions = f.get("versions")
        software = ", ".join(f"{k} {x}" for k, x in versions.items()) if isinstance(versions, dict) else "unknown"
        dirty = ", with uncommitted changes" if f.get("dirty") else ""
        commit = f"commit {f['commit']}{dirty}" if f.get("commit") else "in no repository"
        return [
            ("run", f"{v.run.run_id} on pod {self.pod}, {v.state}"),
            ("device", f"{ranks} rank{'s' if ranks != 1 else ''} on {device}"),
            ("software", software),
            ("code", f"{commit}; job {self.subject.job_hash}"),
            ("directory", v.sight.path if v.sight else str(v.run.path)),
        ]


def of_run(view: RunView, pod: str, *, min_tps: float | None, command: str, fresh: bool) -> Smoke:
    """The rows of a run as far as they are here. `fresh`: it was started for this, so that it has to succeed."""
    run = view.run
    rows, beats, files = _found(read_csv, run.training_csv), _found(read_beats, run.heartbeat(0)), []
    for found, path in ((rows, run.training_csv), (beats, run.heartbeat(0))):
        files += [path] if found is not None else []
    steps, notes = _joined(rows, beats)
    gates = (_run_gate(view, fresh=fresh), *judge(steps, beats.gates if beats else (), min_tps=min_tps))
    env = try_read_json(run.env_json) or {}
    return Smoke(
        _subject(view, env), steps, gates, notes, _facts(view, env, pod, command), tuple(files), view, pod,
    )  # fmt: skip


def of_files(csv: Path | None, heartbeat: Path | None, *, min_tps: float | None, command: str, now: float) -> Smoke:
    """Files of any trainer. LocalError when one cannot be read."""
    rows = _read(read_csv, csv) if csv is not None else None
    beats = _read(read_beats, heartbeat) if heartbeat is not None else None
    steps, notes = _joined(rows, beats)
    files = tuple(path for path in (csv, heartbeat) if path is not None)
    facts = {"run": None, "date": _date(now), "command": command}
    name = (csv or heartbeat or Path("files")).name
    gates = judge(steps, beats.gates if beats else (), min_tps=min_tps)
    return Smoke(Subject(name, {}, {}), steps, gates, notes, facts, files)


def gates_table(gates: Sequence[Gate], width: int = 0) -> list[str]:
    rows = [(g.name, _figure(g), g.unit, limit_of(g), _WORDS[g.verdict], g.why) for g in gates]
    return table(("GATE", "FIGURE", "UNIT", "LIMIT", "VERDICT", ""), rows, right=(1,), width=width).split("\n")


def limit_of(gate: Gate) -> str:
    low, high = (None if x is None else f"{x:g}" for x in (gate.at_least, gate.at_most))
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f">= {low}" if low is not None else f"<= {high}" if high is not None else "-"


def _figure(gate: Gate) -> str:
    return figure(gate.figure)


def _run_gate(view: RunView, *, fresh: bool) -> Gate:
    failed = view.state == RunState.FAILED or (fresh and view.state != RunState.SUCCEEDED)
    why = f"{view.state}: {one_line(view.reason, 120)}" if view.reason else view.state
    return Gate("run", None, "", "fail" if failed else "pass", why)


def _joined(rows: Found | None, beats: Found | None) -> tuple[Steps, tuple[str, ...]]:
    """The rows of the CSV, else those of the beats; fetch times of the beats where the rows have none."""
    notes = [f"rows: {n}" for n in rows.notes] if rows else []
    notes += [f"beats: {n}" for n in beats.notes] if beats else []
    if rows is None or not rows.steps.rows:
        if beats is None or not beats.steps.rows:
            return Steps(), (*notes, "there is no row of a step, neither in a CSV file nor in beats")
        return beats.steps, (*notes, "rows are those of the heartbeats, at most one a second: there is no training.csv")
    extra = beats.steps.of("dt_fetch_s") if beats else ()
    if extra and not rows.steps.of("dt_fetch_s"):
        return Steps(rows.steps.rows, {**rows.steps.columns, "dt_fetch_s": extra}), tuple(notes)
    return rows.steps, tuple(notes)


def _found(read: Any, path: Path) -> Found | None:
    try:
        found: Found = read(path)
    except OSError:
        return None
    return found


def _read(read: Any, path: Path) -> Found:
    try:
        found: Found = read(path)
    except OSError as e:
        raise LocalError(
            "E-SMOKE-008", f"the file cannot be read: {e.strerror}", where=str(path),
            expected="a file of rows or beats", fix="orch smoke --run RUN   (a run of orch knows its files)",
        ) from e  # fmt: skip
    return found


def _subject(view: RunView, env: Mapping[str, Any]) -> Subject:
    info = view.info
    gpus = info.get("gpus_per_rank")
    told = str(env.get("device") or ("cuda" if gpus else "cpu")).split(":")[0]
    machine: dict[str, Any] = {"device": told, "world_size": view.world_size}
    if told == "cpu":
        machine["cpus"] = env.get("cpus") if type(env.get("cpus")) is int else None
    else:
        machine["gpu"] = str(env["gpu"])[:120] if env.get("gpu") else None
    name = view.name.removeprefix("smoke-")
    return Subject(name, job_fields(info.get("job")), machine)


def _facts(view: RunView, env: Mapping[str, Any], pod: str, command: str) -> dict[str, Any]:
    """What a baseline says of a run beside its figures. Only texts and numbers of a pod are taken."""
    code = view.info.get("code")
    code = code if isinstance(code, dict) else {}
    told = env.get("versions")
    told = told if isinstance(told, dict) else {}
    versions = {str(k)[:40]: str(v)[:80] for k, v in list(told.items())[:20]}
    own = view.info.get("versions")
    if isinstance(own, dict) and own.get("orch"):
        versions["orch"] = str(own["orch"])[:80]
    commit = code.get("commit")
    created = view.info.get("created")
    return {
        "run": view.run.run_id, "pod": pod, "date": _date(created if isinstance(created, int | float) else 0.0),
        "commit": str(commit)[:64] if commit else None, "dirty": code.get("dirty") is True, "versions": versions,
        "command": command,
    }  # fmt: skip


def _date(now: float) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(now))
    except (ValueError, OverflowError, OSError):
        return "-"
