"""The figures of the rank that was sick first, and how it ended, as lines. Pure. Called by `why`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.health import median_step_s, outcome
from orchestrator.runs.render import ago, duration, figure, progress
from workloads.contract.beats import Beat
from workloads.contract.records import RankRecord


@dataclass(frozen=True)
class Evidence:
    """What lies on disk of the rank that was sick first. `beats`: of its attempt, oldest first."""

    record: RankRecord | None = None
    beats: tuple[Beat, ...] = ()
    stack: tuple[str, ...] = ()
    stack_of: str = ""  # the dump that it is from, in words
    log: tuple[str, ...] = ()
    not_finite: int | None = None  # the first step of those without a finite loss or gradient, by the ledger


def figures(e: Evidence, now: float) -> list[str]:
    """Step, loss, step time, age of the last beat and memory of the rank, as far as they are known."""
    beats, record = e.beats, e.record
    newest = {k: _last(beats, k) for k in ("step", "steps", "loss", "grad_norm", "toks_per_s", "gpu_mem_reserved")}
    parts = [f"step {progress(newest['step'], newest['steps'])}"] if newest["step"] is not None else []
    parts += [f"loss {figure(newest['loss'])}"] if newest["loss"] is not None else []
    parts += [f"grad norm {figure(newest['grad_norm'])}"] if newest["grad_norm"] is not None else []
    step_s = median_step_s(beats)
    parts += [f"{duration(step_s)} a step"] if step_s else []
    if beats:
        end = record.ended if record is not None else None
        age = (now if end is None else end) - beats[-1].ts
        when = ago(max(age, 0)) if end is None else f"{duration(age)} before its end"
        parts += [f"last beat {when}", f"phase {beats[-1].msg.value}"]
    elif record is not None:
        parts.append("no heartbeat in this attempt")
    parts += [f"GPU {figure(newest['gpu_mem_reserved'])} MiB"] if newest["gpu_mem_reserved"] is not None else []
    if record is not None and record.max_rss_mib is not None:
        parts.append(f"memory at most {figure(record.max_rss_mib)} MiB")
    return [", ".join(parts)] if parts else []


def first_bad(e: Evidence) -> list[str]:
    """Beats come once a second: what the ledger says of every step is more exact."""
    return [] if e.not_finite is None else [f"the first step without a finite loss or gradient is {e.not_finite}"]


def end_of(e: Evidence) -> list[str]:
    record = e.record
    if record is None or record.ended is None:
        return []
    lived = f" after {duration(record.ended - record.ts)}" if record.ended >= record.ts else ""
    left = f"; these of its processes stayed: {', '.join(map(str, record.stayed))}" if record.stayed else ""
    return [f"pid {record.pid}: {outcome(record)}{lived}{left}"]


def _last(beats: Sequence[Beat], name: str) -> Any:
    return next((b.get(name) for b in reversed(beats) if b.get(name) is not None), None)
