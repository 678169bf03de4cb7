"""A secret through the whole of it: the rank has it; no file, argument, record or answer of Ray's does."""

from __future__ import annotations

import json
import os
import secrets
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.keeper.client import KeeperClient
from tests.local.conftest import Orch
from workloads.contract.rundir import OrchHome

pytestmark = pytest.mark.ray

PROGRAM = """
import base64, os, time
value = os.environ["HF_TOKEN"]
print("the token is", value, "and", base64.b64encode(value.encode()).decode(), flush=True)
print("length", len(value), flush=True)
"""


def holders(folder: Path, canary: bytes) -> Iterator[Path]:
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink() and canary in path.read_bytes():
                yield path
        except OSError:
            continue


def ray_folders(home: OrchHome) -> list[Path]:
    """Ray's own temporary directories of this home, session logs included."""
    return [Path(f"/tmp/orch-{os.getuid()}-ray-{c.name[:8]}") for c in (home.path / "ray").glob("*")]


def jobs_of(home: OrchHome, port: int, run_id: str) -> str:
    """What Ray's Jobs API says of every job, logs of the run's own included."""
    token = next((home.path / "ray").glob("*/token")).read_text().strip()
    told = ""
    for path in ("/api/jobs/", f"/api/jobs/{run_id}.1", f"/api/jobs/{run_id}.1/logs"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            told += answer.read().decode()
    assert run_id in told
    return told


@pytest.mark.long
def test_a_secret_is_in_the_rank_and_nowhere_else(orch: Orch) -> None:
    canary = f"hf_canary_{secrets.token_hex(12)}"
    (orch.work / "tell.py").write_text(textwrap.dedent(PROGRAM))
    orch.extra_env["HF_TOKEN"] = canary
    try:
        command = ("--name", "teller", "--set", "secrets=[HF_TOKEN]", "--json", "--", "python", "tell.py")
        plan = orch("launch", "--dry-run", *command)
        run = orch.home.run(json.loads(orch("launch", *command))["run"])
        orch.wait(run, "succeeded", "failed")
    finally:
        del orch.extra_env["HF_TOKEN"]
    printed = run.rank_log(0).read_text()
    assert f"the token is {canary}" in printed and f"length {len(canary)}" in printed, orch.story(run)
    found = set(holders(orch.home.path, canary.encode()))
    assert found == {run.secrets, run.rank_log(0)}  # the program itself printed it
    assert [p for folder in ray_folders(orch.home) for p in holders(folder, canary.encode())] == []
    ray = KeeperClient(orch.home).ray()
    shown = [
        plan, orch("logs", run.run_id), orch("status", run.run_id), orch("status", "--json"),
        orch("runs"), str(ray), jobs_of(orch.home, ray["dashboard_port"], run.run_id),
    ]  # fmt: skip
    assert not any(canary in text for text in shown)
    assert "the token is [secret HF_TOKEN] and [secret HF_TOKEN]" in shown[1]
