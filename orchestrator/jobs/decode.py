"""Decoding as a job: `orch decode ...` in the words of a job file, or a job file with some of them changed.

Prompts that a person names are read here and travel in the job, so that run.json says what was asked. Reads files,
writes nothing. Called by `orch decode`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.jobs.jobfile import LoadedJob, load_job, made_job, requirements_of
from orchestrator.jobs.words import DEVICES, check_choice
from workloads.contract.errors import LocalError, UsageError
from workloads.contract.files import read_bytes_bounded
from workloads.contract.prompts import conversations_of

MAX_TRAVELLING = 1 << 20
CHOICES = {
    "backend": ("full", "cache", "decoupled"),
    "device": DEVICES,
    "dtype": ("auto", "fp32", "bf16", "fp16"),
}


@dataclass(frozen=True)
class Asked:
    """What was typed. settings: keys of the job's `decode` block; prompt: the turns of one conversation."""

    job: str | None = None
    weights: str | None = None
    prompts: str | None = None  # a file here
    prompt: Sequence[str] = ()
    pod: str | None = None
    python: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def decode_job(asked: Asked, cwd: Path) -> LoadedJob:
    """The job of `orch decode`. UsageError, LocalError or SpecErrors as for a job file."""
    changed = _settings(asked, cwd)
    pods = [asked.pod] if asked.pod else []
    if asked.job is None:
        data: dict[str, Any] = {"name": "decode", "kind": "decode", "decode": changed}
    else:
        loaded = load_job(asked.job, pods=pods, cwd=cwd)
        if loaded.spec.kind != "decode":
            raise UsageError(
                "E-DECODE-020", f"{asked.job} is a job of kind {loaded.spec.kind}", where="orch decode",
                value=asked.job, expected="a job of kind decode", fix=f"orch launch {shlex.quote(asked.job)}",
            )  # fmt: skip
        if not changed and asked.python is None:
            return loaded
        data = loaded.spec.model_dump(mode="json", exclude_unset=True)
        if loaded.spec.requirements is not None:  # the job that is made has no file beside which it could lie
            data["requirements"] = str(requirements_of(loaded, cwd))
        data["decode"] = {**data.get("decode", {}), **changed}
        if "weights" in changed:
            data.pop("model", None)
    data |= {"python": asked.python} if asked.python else {}
    return made_job(data, shlex.join(_words(asked)), name=None, pods=pods)


def _settings(asked: Asked, cwd: Path) -> dict[str, Any]:
    """The keys of the `decode` block that were typed."""
    found = {key: value for key, value in asked.settings.items() if value is not None}
    for key, known in CHOICES.items():
        check_choice("orch decode", f"--{key}", found.get(key), known)
    if "kv_policy" in found:
        found.setdefault("backend", "decoupled")
    elif found.get("backend", "decoupled") != "decoupled":
        found["kv_policy"] = None  # of the job file
    if asked.weights is not None:
        found["weights"] = asked.weights
    if asked.prompts is not None and asked.prompt:
        raise UsageError(
            "E-CLI-006", "--prompts names a file and --prompt is one: give one of the two", where="orch decode",
            fix=f"orch decode --prompts {shlex.quote(asked.prompts)}",
        )  # fmt: skip
    if asked.prompts is not None:
        found["prompts"] = _prompts(asked.prompts, cwd)
    elif asked.prompt:
        found["prompts"] = [list(asked.prompt)]
    return found


def _prompts(name: str, cwd: Path) -> list[list[str]]:
    path = cwd / Path(name).expanduser()
    try:
        return conversations_of(read_bytes_bounded(path, MAX_TRAVELLING), path.name)
    except (OSError, ValueError) as e:
        said = (e.strerror or "it cannot be read") if isinstance(e, OSError) else f"{e}"
        raise LocalError(
            "E-DECODE-021", f"the prompts cannot be read: {said}", where=str(path),
            expected="text, a prompt a line; or *.json, a list of conversations, each a list of prompts; at most 1 MiB",
            fix="larger ones: put the file on the pod and name it in a job file, decode.prompts: PATH",
        ) from e  # fmt: skip


def _words(asked: Asked) -> list[str]:
    """The command line again."""
    words = ["orch", "decode", *([asked.job] if asked.job else [])]
    named = {
        "from": asked.weights,
        "prompts": asked.prompts,
        **asked.settings,
        "pod": asked.pod,
        "python": asked.python,
    }
    for key, value in named.items():
        words += [] if value is None else [f"--{key.replace('_', '-')}", str(value)]
    for text in asked.prompt:
        words += ["--prompt", text]
    return words
