"""What this rank judges: the job in run.json, and where its code comes from. No torch here.

Refusals are `SpecError`s that `workloads.parity.__main__` turns into exit 77: a restart cannot help.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workloads.contract.config.job import JobSpec, ParitySpec
from workloads.contract.errors import SpecError, escape
from workloads.contract.files import read_json
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class ParityConfig:
    asked: ParitySpec
    commit: str  # of the code that is judged; the tree's hash where it came from no repository
    dirty: bool
    command: str  # what a person typed
    pod: str


def load(env: RankEnv) -> ParityConfig:
    """The job of the run directory. SpecError when it is missing or wrong."""
    path = env.run.run_json
    try:
        row = read_json(path)
        # through JSON: strict models take a list for a tuple there and nowhere else
        job = JobSpec.model_validate_json(json.dumps(row["job"]))
        commit, dirty = _commit(row)
        source = str(row.get("source", ""))
    except (OSError, ValueError, KeyError, AttributeError) as e:
        what = f"{e.error_count()} mistakes" if isinstance(e, ValidationError) else f"{e}"
        raise SpecError("E-PARITY-002", f"the run's job cannot be read: {what}", where=str(path)) from e
    command = source if source.startswith("orch ") else f"orch launch {source}"
    return ParityConfig(job.parity, commit, dirty, escape(command, 400), env.pod)


def _commit(row: Mapping[str, Any]) -> tuple[str, bool]:
    """(commit, were there uncommitted changes) of the tree that this process runs from.

    Its hash stands for a commit where it came from no repository, or where a resume brought another one.
    """
    tree = Path(__file__).resolve().parents[2].name
    code = row.get("code") or {}
    commit = code.get("commit")
    if not isinstance(commit, str) or Path(str(row["tree"])).name != tree:
        return f"tree {tree}", False
    return commit, code.get("dirty") is True
