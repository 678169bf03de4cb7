"""Baselines of `orch smoke`: how a job ran on a machine, kept as JSON where a person wants it.

A baseline is one job on one kind of machine, and up to 20 runs of it: from three on it knows how much runs differ. One
of another job or machine is refused by name, never added in silence. Pure but for reading and writing the file. Called
by `orch smoke`; runs are held against one by `orchestrator.runs.smokecompare`.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs.render import one_line
from orchestrator.runs.throughput import BLOCKS, MAX_RUNS, block_medians
from workloads.contract.errors import ConflictError, LocalError
from workloads.contract.files import atomic_write, read_bytes_bounded
from workloads.contract.smoke import FIRST_ROWS, LAST_ROWS, Steps

VERSION, WHAT = 1, "baseline of orch smoke"
MAX_BYTES = 4 << 20
MACHINE = ("device", "gpu", "world_size", "cpus")
_NOT_COMPARED = {"train.steps", "train.log_every", "train.tensorboard"}
_AREAS = ("kind", "command", "env", "model", "data", "train", "resources", "runtime")


@dataclass(frozen=True)
class Subject:
    """What was run, on what. `job`: fields that change what is computed or how fast, flat; {}: nobody knows (plain
    files). `machine`: as in `MACHINE`."""

    name: str
    job: Mapping[str, Any]
    machine: Mapping[str, Any]

    @property
    def job_hash(self) -> str:
        return hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).hexdigest()[:16]


def job_fields(job: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a run.json's job: what changes the work or its speed and is not as by default, flat; {} for a job that this
    orch cannot read. Values of environment variables are told as hashes."""
    from pydantic import ValidationError

    from workloads.contract.config.job import JobSpec

    try:
        spec = JobSpec.model_validate_json(json.dumps(job))
    except (ValidationError, ValueError, TypeError):
        return {}
    flat: dict[str, Any] = {"kind": spec.kind}
    for area, value in spec.model_dump(mode="json", include=set(_AREAS), exclude_defaults=True).items():
        for name, one in (value if isinstance(value, dict) else {"": value}).items():
            told = hashlib.sha256(str(one).encode()).hexdigest()[:12] if area == "env" else one
            flat[f"{area}.{name}" if name else area] = told
    return {k: v for k, v in flat.items() if k not in _NOT_COMPARED}


def entry(steps: Steps, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One run of a baseline. `facts`: run, date, commit, dirty, versions, command. ValueError with too few rows."""
    rates = [x for x in steps.of("toks_per_s") if x == x]
    blocks = block_medians(rates)
    return {
        **facts, "rows": steps.rows, "last_step": _last_step(steps), "toks_per_s": statistics.median(blocks),
        "blocks": [float(f"{x:.6g}") for x in blocks],
        "loss_first": _mean(steps.of("loss")[:FIRST_ROWS]), "loss_last": _mean(steps.of("loss")[-LAST_ROWS:]),
    }  # fmt: skip


def document(subject: Subject, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "v": VERSION, "what": WHAT, "name": subject.name, "job_hash": subject.job_hash, "job": dict(subject.job),
        "machine": dict(subject.machine), "runs": [dict(run) for run in runs[-MAX_RUNS:]],
    }  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """A baseline. LocalError when there is none in `path`."""
    try:
        row = json.loads(read_bytes_bounded(path.resolve(), MAX_BYTES))
        why = _wrong(row)
    except OSError as e:
        why = e.strerror or str(e)
    except (ValueError, RecursionError):
        why = "it is no JSON document of at most 4 MiB"
    if why is not None:
        raise LocalError(
            "E-SMOKE-001", f"there is no baseline to read: {why}", where=str(path), expected="a file that "
            "`orch smoke JOB --save-baseline FILE` wrote", fix=f"orch smoke JOB --save-baseline {path}",
        )  # fmt: skip
    found: dict[str, Any] = row
    return found


def save(path: Path, subject: Subject, run: Mapping[str, Any]) -> int:
    """Add `run` to the baseline in `path`, or begin one; how many runs it has. The same run again takes its own place.

    ConflictError when what lies there is of another job or machine; LocalError when it is no baseline, or cannot be
    written.
    """
    runs: list[Mapping[str, Any]] = []
    if path.exists():
        there = read(path)
        refuse_others(there, subject, str(path), "--save-baseline")
        runs = [r for r in there["runs"] if r.get("run") is None or r.get("run") != run.get("run")]
    kept = [*runs, run][-MAX_RUNS:]
    try:
        atomic_write(path, json.dumps(document(subject, kept), indent=1).encode() + b"\n", mode=0o644)
    except OSError as e:
        raise LocalError(
            "E-SMOKE-002", f"the baseline cannot be written: {e.strerror}", where=str(path),
            fix="--save-baseline FILE, where you may write",
        ) from e  # fmt: skip
    return len(kept)


def refuse_others(there: Mapping[str, Any], subject: Subject, where: str, option: str) -> None:
    """ConflictError that names what differs, when the baseline is of another job or another machine."""
    then, now = dict(there["machine"]), dict(subject.machine)
    machine = [k for k in MACHINE if then.get(k) != now.get(k)]
    job = sorted(k for k in {*there["job"], *subject.job} if there["job"].get(k) != subject.job.get(k))
    if not machine and not job:
        return
    names, old, new = (machine, then, now) if machine else (job, there["job"], subject.job)
    what = "another kind of machine" if machine else "another job"
    raise ConflictError(
        "E-SMOKE-005", f"the baseline is of {what}: {', '.join(names[:8])}", where=f"{option} {where}",
        value=", ".join(f"{k}: {_told(new, k)}" for k in names[:8]),
        expected=", ".join(f"{k}: {_told(old, k)}" for k in names[:8]), fix=f"{option} FILE   (one of its own)",
    )  # fmt: skip


def _told(row: Mapping[str, Any], key: str) -> str:
    return one_line(str(row[key]), 60) if row.get(key) is not None else "as by default, or unknown"


def _wrong(row: Any) -> str | None:
    """Why a document is no baseline; None: it is one."""
    if not isinstance(row, dict) or row.get("v") != VERSION or row.get("what") != WHAT:
        return f"it is no {WHAT} of version {VERSION}"
    runs = row.get("runs")
    if not isinstance(row.get("job"), dict) or not isinstance(row.get("machine"), dict):
        return "it names no job and machine"
    if not isinstance(runs, list) or not 1 <= len(runs) <= MAX_RUNS or not all(map(_is_entry, runs)):
        return f"it does not hold 1 to {MAX_RUNS} runs with the medians of {BLOCKS} blocks"
    return None


def _is_entry(run: Any) -> bool:
    if not isinstance(run, dict) or type(run.get("rows")) is not int or not _positive(run.get("toks_per_s")):
        return False
    blocks = run.get("blocks")
    return isinstance(blocks, list) and len(blocks) == BLOCKS and all(map(_positive, blocks))


def _positive(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e18


def _last_step(steps: Steps) -> int | None:
    told = steps.of("step")
    return int(told[-1]) if told and abs(told[-1]) < 1 << 53 else None


def _mean(values: Sequence[float]) -> float | None:
    good = [x for x in values if abs(x) < 1e18]
    return float(f"{statistics.fmean(good):.9g}") if good and len(good) == len(values) else None
