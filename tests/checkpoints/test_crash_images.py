"""Power cuts: at every step of a save the copied ext4 holds the checkpoint that was promised. Each fsync counts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.crash import UNAVAILABLE
from tests.checkpoints.killer import NEW, NEWEST, OLD
from tests.train.harness import ROOT

pytestmark = [pytest.mark.lab, pytest.mark.long]


def power_cuts(folder: Path, *without: str) -> list[dict[str, Any]]:
    began = time.monotonic()
    argv = [sys.executable, "-m", "tests.checkpoints.crash", str(folder), *without]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stderr.strip()[-300:])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(f"{len(rows)} power cuts in {time.monotonic() - began:.1f} s")
    assert len(rows) >= 24 and rows[-1]["at"] is None
    for row in rows:  # whatever was left out: an older checkpoint is never lost
        assert row["whole"] and row["newest"] in (NEWEST, NEW) and NEWEST in row["verified"] and not row["left"], row
    return rows


def test_what_a_save_promised_is_there_after_a_power_cut(tmp_path: Path) -> None:
    rows = power_cuts(tmp_path)
    synced = next(r["n"] for r in rows if r["at"] == "fsync checkpoints")
    for row in rows:
        assert row["newest"] == (NEWEST if row["n"] <= synced else NEW), row
        assert len(row["verified"]) >= 2 and row["rejected"] == [], row


def test_without_fsync_of_directories_a_save_that_was_done_is_gone(tmp_path: Path) -> None:
    last = power_cuts(tmp_path, "without", "directories")[-1]
    assert last["newest"] == NEWEST and last["verified"] == [NEWEST, OLD]


def test_without_fsync_of_files_a_save_that_was_done_is_damaged(tmp_path: Path) -> None:
    last = power_cuts(tmp_path, "without", "files")[-1]
    assert last["newest"] == NEWEST and last["rejected"] == [f"step_{NEW:08d}"]
