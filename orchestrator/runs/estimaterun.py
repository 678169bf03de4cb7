"""What a run really takes, beside what was estimated of its job. Pure but for reading the run's own files.

Called by `orch estimate --run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.runs.estimate import MFU, Estimate, estimate
from orchestrator.runs.render import table
from orchestrator.runs.views import RunView
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import IntegrityError
from workloads.contract.files import try_read_json
from workloads.contract.gpusheets import SHEETS, sheet_of
from workloads.contract.manifest import read_manifest

MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """Of a run, from its newest beats. None: not told."""

    gpu: str | None
    reserved_mib: float | None
    """what the allocator of the rank that has most holds: the worst moment so far"""
    toks_per_s: float | None
    mfu: float | None
    checkpoint_bytes: int | None


def of_run(view: RunView) -> tuple[Estimate, Measured]:
    """The estimate of the run's own job on its own GPU, and what it took. IntegrityError: its job cannot be read."""
    try:
        job = JobSpec.model_validate_json(json.dumps(view.info.get("job")))
    except (ValidationError, TypeError, ValueError) as e:
        raise IntegrityError(
            "E-EST-003",
            "the run's job cannot be read",
            where=str(view.run.run_json),
            fix=f"orch status {view.run.run_id}",
        ) from e
    env = try_read_json(view.run.env_json)
    newest = None if view.checkpoint is None else view.run.checkpoint(view.checkpoint)
    manifest = None if newest is None else read_manifest(newest)[0]
    size = sum(f.size for f in manifest.files) if manifest else None
    beats = [b.fields for rank in view.ranks for b in rank.beats]
    found = measured(env if isinstance(env, dict) else {}, beats, size)
    ranks = view.info.get("world_size")
    sheet = sheet_of(found.gpu) if found.gpu else None
    sheets = (sheet,) if sheet else SHEETS
    return estimate(job, ranks=ranks if type(ranks) is int and ranks > 0 else None, sheets=sheets), found


def measured(env: Mapping[str, Any], beats: Sequence[Mapping[str, Any]], checkpoint_bytes: int | None) -> Measured:
    """`env`: env.json of the run; `beats`: fields of the newest beats of all ranks. Neither is trusted."""
    gpu, held = env.get("gpu"), _values(beats, "gpu_mem_reserved")
    return Measured(
        gpu=gpu if isinstance(gpu, str) else None, reserved_mib=held[-1] if held else None,
        toks_per_s=_middle(beats, "toks_per_s"), mfu=_middle(beats, "mfu"), checkpoint_bytes=checkpoint_bytes,
    )  # fmt: skip


def held_against(e: Estimate, m: Measured) -> list[str]:
    """Estimate and run, side by side."""
    on = next((g.toks_per_s for g in e.gpus if g.sheet.name == m.gpu), None)
    size = None if m.checkpoint_bytes is None else m.checkpoint_bytes / MIB
    rows = [
        _row("GPU memory, MiB", e.memory.total / MIB, m.reserved_mib),
        _row("tokens/s", on, m.toks_per_s),
        _row("share of the peak, %", 100 * MFU, None if m.mfu is None else 100 * m.mfu),
        _row("a checkpoint, MiB", e.checkpoint_bytes / MIB, size),
    ]
    return table(("", "ESTIMATE", "THE RUN", "RUN / ESTIMATE"), rows, right=(1, 2, 3)).split("\n")


def as_json(e: Estimate, m: Measured) -> dict[str, Any]:
    return {**e.as_json(), "measured": asdict(m)}


def _row(what: str, estimated: float | None, run: float | None) -> tuple[str, str, str, str]:
    share = "-" if not estimated or run is None else f"{run / estimated:.2f}"
    return what, _number(estimated), _number(run), share


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _values(beats: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    found = [b.get(name) for b in beats]
    return sorted(v for v in found if isinstance(v, int | float) and 0 < v < 1e18)


def _middle(beats: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _values(beats, name)
    return values[len(values) // 2] if values else None
