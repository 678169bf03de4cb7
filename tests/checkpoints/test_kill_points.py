"""SIGKILL before every single thing a save, a resume and a removal do to the disk; then the next attempt looks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.killer import NEW, NEWEST, OLD
from tests.train.harness import ROOT

DAMAGED = f"step_{NEW:08d}"


def killed(scene: str, folder: Path) -> list[dict[str, Any]]:
    began = time.monotonic()
    argv = [sys.executable, "-m", "tests.checkpoints.killer", scene, str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"{scene}: {len(rows) - 1} kill points in {time.monotonic() - began:.1f} s")
    assert [r["n"] for r in rows] == list(range(len(rows))) and rows[-1]["at"] is None
    return rows


def rename_of(rows: list[dict[str, Any]]) -> int:
    """The kill point before the rename that makes the checkpoint of step NEW."""
    found = [r["n"] for r in rows if str(r["at"]).endswith(f" checkpoints/{DAMAGED}") and "rename" in r["at"]]
    assert len(found) == 1
    return int(found[0])


@pytest.mark.parametrize("scene", ["save", "background", pytest.param("torch", marks=pytest.mark.long)])
def test_a_save_killed_anywhere_leaves_the_newest_whole_checkpoint(tmp_path: Path, scene: str) -> None:
    rows = killed(scene, tmp_path)
    commit = rename_of(rows)
    assert commit >= 20 and len(rows) >= commit + 8
    for row in rows:
        assert row["newest"] == (NEWEST if row["n"] <= commit else NEW), row
        assert row["whole"] and row["left"] == [] and row["rejected"] == [], row
        assert len(row["before"]) >= 2 and row["verified"] == row["before"], row
    assert rows[commit]["before"] == [NEWEST, OLD] and rows[-1]["before"] == [NEW, NEWEST]
    # every kind of step was among them
    words = {str(r["at"]).split(" ")[0] for r in rows[:-1]}
    assert words >= {"mkdir", "open", "write", "rest", "fsync", "rename", "remove", "rmdir"}


def test_a_resume_killed_anywhere_loses_neither_the_good_nor_the_damaged_one(tmp_path: Path) -> None:
    rows = killed("resume", tmp_path)
    commit = rename_of(rows)
    put_away = next(r["n"] for r in rows if "rejected_" in str(r["at"]))
    assert put_away < commit
    for row in rows:
        assert row["newest"] == (NEWEST if row["n"] <= commit else NEW), row
        assert row["whole"] and row["left"] == [] and len(row["verified"]) >= 2, row
        assert row["rejected"] == [DAMAGED], row
        assert row["kept"] == [f"rejected_{DAMAGED}_a{3 if row['n'] <= put_away else 2}"], row
