"""Run directories as a launch makes them, for the tests of the supervisor."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.contract.files import atomic_write_json
from workloads.contract.rundir import OrchHome, RunDir, make_run_id

ROOT = Path(__file__).parents[2]


def run_row(home: OrchHome, run_id: str, argv: Sequence[str], **changes: Any) -> dict[str, Any]:
    """run.json of a command run on the pod `local`; `world`, `restart` and `cpus` as in a job."""
    world = changes.pop("world", 1)
    row = {
        "v": 1, "run": run_id, "name": run_id.rsplit("-", 2)[0], "kind": "command", "created": time.time(),
        "operator": "test@here", "head": "local", "cluster": "abc123abc123",
        "job": {
            "restart": changes.pop("restart", {"max": 3, "backoff_s": [0, 0.2]}),
            "health": changes.pop("health", {}),
            "halt": {"grace_s": changes.pop("grace_s", 600.0)}, "train": {"steps": 50},
        },
        "pods": [
            {"name": "local", "address": "127.0.0.1", "ranks": list(range(world)), "gpus": 0,
             "python": sys.executable, "orch_python": sys.executable, "root": str(home.path)},
        ],
        "world_size": world, "cpus_per_rank": 1, "gpus_per_rank": 0, "argv": list(argv), "cwd": str(home.path),
        "env": {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ},
        "tree": str(ROOT), "code": {"commit": None, "dirty": False}, "versions": {"orch": "0.1.0"},
    }  # fmt: skip
    return row | changes


def make_run(home: OrchHome, argv: Sequence[str], name: str = "sup", **changes: Any) -> RunDir:
    """A run that was submitted: staged, renamed."""
    run_id = make_run_id(name)
    staged = RunDir(home.runs / f".tmp_{run_id}")
    for folder in (staged.path, *staged.skeleton()):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write_json(staged.run_json, run_row(home, run_id, argv, **changes))
    staged.path.rename(home.runs / run_id)
    return home.run(run_id)


def request(run: RunDir, verb: str, ident: str = "abcd", **fields: Any) -> Path:
    path = run.request(verb, ident)
    row: Mapping[str, Any] = {"v": 1, "verb": verb, "who": "test", "ts": time.time(), **fields}
    atomic_write_json(path, row)
    return path
