"""The commit of a hub's data set that a run reads: asked for once, by rank 0, and kept in `data.json` for ever.

A branch that moves between two attempts, or between two ranks, would be other text. A run that could never ask, and
whose job allows another source, stays with that one: what it is trained on must not change half way. Called by the
trainer's build, before the data is opened.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from workloads.contract.config.job import DataSpec, HubSpec
from workloads.contract.errors import OrchError
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.data.blocks import SourceGone
from workloads.data.hub import NEVER_REACHED, commit_of, is_folder, preload
from workloads.data.reading import Patience
from workloads.runtime.agreement import Agreement
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class _Answer:
    commit: str = ""
    refusal: OrchError | None = None
    gone: SourceGone | None = None


def pinned(data: DataSpec, env: RankEnv, agreement: Agreement) -> DataSpec:
    """`data` with `dataset.revision` as a commit. Collective; on every rank the same OrchError or SourceGone."""
    spec = data.dataset
    if data.source != "hub" or spec is None or is_folder(spec.repo):
        return data
    answer = agreement.from_rank0(_ask(spec, data, env) if env.rank == 0 else None)
    for error in (answer.refusal, answer.gone):
        if error is not None:
            raise error
    return data.model_copy(update={"dataset": spec.model_copy(update={"revision": answer.commit})})


def _ask(spec: HubSpec, data: DataSpec, env: RankEnv) -> _Answer:
    row = try_read_json(env.run.data_json) or {}
    asked = spec.model_dump(mode="json")
    if row.get("dataset") == asked and isinstance(row.get("commit"), str):
        return _Answer(row["commit"])
    try:
        preload()
        patience = Patience(data.read_timeout_s, data.read_tries)
        commit = patience.call(lambda: commit_of(spec, data.read_timeout_s), "hub", spec.repo)
    except OrchError as e:
        return _Answer(refusal=e)
    except SourceGone as e:
        if not data.fallback:
            return _Answer(gone=e)
        commit = NEVER_REACHED
        print(f"warning: data: {e}; this run will never read it", file=sys.stderr, flush=True)
    try:
        atomic_write_json(env.run.data_json, {"v": 1, "ts": time.time(), "dataset": asked, "commit": commit})
    except OSError as e:
        print(f"warning: {env.run.data_json.name} was not written: {e}", file=sys.stderr, flush=True)
    print(f"data: {spec.repo} at {commit}", flush=True)
    return _Answer(commit)
