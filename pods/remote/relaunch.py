"""What a person types to launch the job of a run again, from its run.json. Pure; used by `orch why` and by resumes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

COMMAND_LINE = "command line"
"""the `source` of a job that is a command: what was typed is in the job itself"""


def relaunch(row: Mapping[str, Any], orch: str = "orch") -> str:
    """One line for a shell, with `orch` as the program. `row`: run.json, whole or not.

    The pods are named, since a launch may have chosen them by `--pod`; a job that an `orch` command made is that
    command. `orch launch JOB` where run.json does not say from what the run was launched.
    """
    source = row.get("source")
    if not isinstance(source, str) or not source:
        return f"{orch} launch JOB"
    if source.startswith("orch "):
        return orch + source.removeprefix("orch")
    on = "".join(f" --pod {shlex.quote(name)}" for name in _pods(row))
    if source != COMMAND_LINE:
        return f"{orch} launch {shlex.quote(source)}{on}"
    words = _command(row)
    return f"{orch} launch{on} -- {shlex.join(words) if words else 'COMMAND'}"


def _pods(row: Mapping[str, Any]) -> list[str]:
    pods = row.get("pods")
    names = [p.get("name") for p in pods if isinstance(p, dict)] if isinstance(pods, list) else []
    return [name for name in names if isinstance(name, str)]


def _command(row: Mapping[str, Any]) -> list[str]:
    job = row.get("job")
    words = job.get("command") if isinstance(job, dict) else None
    return [str(word) for word in words] if isinstance(words, list) else []
