"""What a rank was asked, and where its code comes from: the job and the words in run.json. No torch here.

Called by the `config` of each kind, which says what it calls the mistake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError, escape
from workloads.contract.files import read_json
from workloads.contract.jobchanges import job_file
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class Origin:
    job: JobSpec
    commit: str  # of the code that is judged; the tree's hash where it came from no repository
    dirty: bool
    command: str  # what a person typed
    pod: str


def read_origin(env: RankEnv, code: str) -> Origin:
    """The origin of the run that this rank is of. SpecError `code`, and so exit 77, when it is missing or wrong."""
    path = env.run.run_json
    try:
        row = read_json(path)
        path = job_file(env.run, env.attempt)
        # through JSON: strict models take a list for a tuple there and nowhere else
        job = JobSpec.model_validate_json(json.dumps(read_json(path)["job"]))
        commit, dirty = _commit(row)
        source = str(row.get("source", ""))
    except (OSError, ValueError, KeyError, AttributeError) as e:
        what = f"{e.error_count()} mistakes" if isinstance(e, ValidationError) else f"{e}"
        raise SpecError(code, f"the run's job cannot be read: {what}", where=str(path)) from e
    command = source if source.startswith("orch ") else f"orch launch {source}"
    return Origin(job, commit, dirty, escape(command, 400), env.pod)


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
