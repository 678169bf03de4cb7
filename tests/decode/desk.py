"""A run directory of kind `decode`, and one rank process after the other in it; no supervisor, no Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pods.tree import source_root
from workloads.contract.rundir import RunDir

RUN_ID = "decode-20261121T093000Z-00ff"
TINY = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2}
TURNS = [["one", "two", "three"], "four"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Desk:
    run: RunDir

    def start(self, attempt: int = 1, **env: str) -> subprocess.Popen[str]:
        self.run.attempt_dir(attempt).mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        told = {
            "ORCH_RUN_DIR": str(self.run.path), "ORCH_RUN_ID": RUN_ID, "ORCH_ATTEMPT": str(attempt),
            "ORCH_POD": "local", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(source_root()), "OMP_NUM_THREADS": "1",
            "RANK": "0", "WORLD_SIZE": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workloads.decode"], env={**kept, **told, **env}, cwd=self.run.path,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __call__(self, attempt: int = 1, code: int = 0, **env: str) -> str:
        process = self.start(attempt, **env)
        try:
            out, _ = process.communicate(timeout=180)
        finally:
            process.kill()
        assert process.returncode == code, out
        return out

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.run.decode_rows)


def make(home: Path, *, model: dict[str, Any] | None = None, **asked: Any) -> Desk:
    run = RunDir(home / "runs" / RUN_ID)
    run.path.mkdir(parents=True)
    for folder in run.skeleton():
        folder.mkdir()
    job: dict[str, Any] = {
        "name": "decode",
        "kind": "decode",
        "decode": {"prompts": TURNS, "max_new_tokens": 6} | asked,
    }
    if "weights" not in asked:
        job["model"] = model or TINY
    doc = {
        "v": 1, "job": job, "tree": str(source_root()), "code": {"commit": "c" * 40, "dirty": False},
        "source": "orch decode x",
    }  # fmt: skip
    run.run_json.write_text(json.dumps(doc))
    return Desk(run)
