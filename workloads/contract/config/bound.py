"""Which fields of a training's job its checkpoints bind, and the refusal of a job that differs from one of them. Pure.

Asked by a rank that resumes, of the checkpoint that it verified, and by `orch resume --set` before anybody is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from workloads.contract.allowed import is_allowed
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError

_UNBOUND = {
    "micro_batch", "log_every", "tensorboard", "compile", "compile_mode", "parallel", "activation_checkpointing",
    "attention", "loss_chunk", "on_nan",
}  # fmt: skip
"""fields of `train` that say how it is computed, told or watched: the model that is trained is the same"""
_UNBOUND_DATA = {"read_timeout_s", "read_tries", "fallback", "fallback_path", "report_docs"}
"""fields of `data` that say how it is had: what the text is, the corpus' fingerprint says"""
STEPS, FLAT = "train.steps", "train.min_lr_ratio"


def bound_fields(job: JobSpec) -> dict[str, Any]:
    """`model.*`, `data.*` and `train.*` fields that a resume must agree on, flat, as JSON values."""
    row = job.model_dump(mode="json", include={"model", "data", "train"})
    flat: dict[str, Any] = {}
    for area, fields in row.items():
        for name, value in fields.items():
            if name not in {"train": _UNBOUND, "data": _UNBOUND_DATA}.get(area, ()):
                flat[f"{area}.{name}"] = value
    return flat


BoundChanges = dict[str, list[Any]]
"""field -> [as it was, as it is]"""


def refuse_changes(
    saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str, allowed: Collection[str] = ()
) -> BoundChanges:
    """The fields in which the checkpoint and the job differ, all of them `allowed`; SpecError that names the others.

    A field that the checkpoint's orch did not know yet counts as today's default: what that orch computed. More or
    fewer steps are another training only where the learning rate falls over them.
    """
    saved = bound_fields(JobSpec(name="defaults")) | dict(saved)
    names = sorted(k for k in saved.keys() | now.keys() if saved.get(k) != now.get(k))
    free = {STEPS} if saved[FLAT] == now.get(FLAT) == 1.0 else set()
    refused = [k for k in names if k not in free and not is_allowed(k, allowed)]
    if refused:
        changes = ", ".join(f"{k}: {saved.get(k)!r} -> {now.get(k)!r}" for k in refused)
        raise SpecError(
            "E-TRAIN-003",
            f"the job differs from the one that wrote {checkpoint}: {', '.join(refused)}",
            value=changes,
            expected="the same model, data and optimizer settings"
            + (f" ({STEPS} counts: the learning rate falls over it)" if STEPS in refused else ""),
            fix=f"launch a new run, or let them change: {' '.join(f'--allow-config-change {k}' for k in refused)}",
        )
    return {k: [saved.get(k), now.get(k)] for k in names}
