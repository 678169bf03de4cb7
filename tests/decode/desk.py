"""A run directory of kind `decode`, and one rank after the other in it, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pods.tree import source_root
from workloads.contract.config.job import ModelSpec
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir
from workloads.decode.__main__ import _decode
from workloads.runtime import Run
from workloads.runtime.rankenv import RankEnv

RUN_ID = "decode-20261121T093000Z-00ff"
SPEC = ModelSpec(dim=32, layers=2, heads=4, kv_heads=2, tie_embeddings=False)
TURNS = [["one", "two", "three"], "four"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Desk:
    run: RunDir

    def env(self, attempt: int = 1) -> dict[str, str]:
        self.run.attempt_dir(attempt).mkdir(exist_ok=True)
        self.run.epoch.write_text(str(attempt))
        return {
            "ORCH_RUN_DIR": str(self.run.path), "ORCH_RUN_ID": RUN_ID, "ORCH_ATTEMPT": str(attempt),
            "ORCH_POD": "local", "RANK": "0", "WORLD_SIZE": "1",
        }  # fmt: skip

    def here(self, attempt: int = 1) -> int:
        """The rank in this process; OrchErrors as they are."""
        env = RankEnv.read(self.env(attempt))
        assert env is not None
        return _decode(env, Run(env))

    def start(self, attempt: int = 1) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        more = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(source_root()), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workloads.decode"], env={**kept, **self.env(attempt), **more},
            cwd=self.run.path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.run.decode_rows)

    @property
    def ids(self) -> list[list[int]]:
        return [row["ids"] for row in self.rows]

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.run.decode_summary)


def make(home: Path, *, run_id: str = RUN_ID, **asked: Any) -> Desk:
    run = RunDir(home / "runs" / run_id)
    for folder in run.skeleton():
        folder.mkdir(parents=True)
    job: dict[str, Any] = {"name": "decode", "kind": "decode"}
    job["decode"] = {"prompts": TURNS, "max_new_tokens": 6} | asked
    if "weights" not in asked:
        job["model"] = SPEC.model_dump()
    doc = {
        "v": 1, "job": job, "tree": str(source_root()), "code": {"commit": "c" * 40, "dirty": False},
        "source": "orch decode x",
    }  # fmt: skip
    run.run_json.write_text(json.dumps(doc))
    return Desk(run)
