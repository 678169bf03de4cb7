"""A rank of an older attempt commits nothing that a newer one has not seen, whenever the newer one comes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints.killer import NEW, NEWEST, OLD
from tests.checkpoints.saver import checkpointer, leftovers, make_run, save, verified
from tests.train.harness import ROOT
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.staging import Staged, is_owned, take_away
from workloads.train.resume import choose


def test_a_newer_attempt_at_every_step_of_a_save(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.checkpoints.stale", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    commit = next(r["n"] for r in rows if str(r["at"]).endswith(f" checkpoints/step_{NEW:08d}"))
    assert commit >= 15 and len(rows) >= 2 * (commit + 5)
    for row in rows[:-2]:
        # behind its last look at the epoch the old rank may commit, if the newer attempt has not looked yet
        late = row["n"] > commit or (row["n"] == commit and not row["looked"])
        assert row["how"] == ("saved" if late else "stale"), row
        assert row["newest"] == f"{NEW if late else NEWEST:08d}", row
        # what is too old is removed by a rank that owns the run, or had begun to while it did
        kept = [NEW, NEWEST] if row["n"] > commit + 1 else [NEW, NEWEST, OLD]
        assert row["verified"] == (kept if late else [NEWEST, OLD]), row
        assert all(name.startswith(".tmp_taken_a2_") for name in row["left"]), row


HOLDER = """
import sys
from pathlib import Path

import pytest
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.staging import Staged
staged = Staged(Path(sys.argv[1]))
(staged.path / "half").write_bytes(b"x")
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_living_process_stages_is_taken_from_it_and_removed_once_it_is_dead(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    staged = run.staged_checkpoint(30, 1)
    argv = [sys.executable, "-c", HOLDER, str(staged)]
    holder = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert is_owned(staged)
        assert take_away(run, 2) == ([], [staged.name])
        assert not staged.exists() and leftovers(run) == [".tmp_taken_a2_step_00000030_a1"]
        assert take_away(run, 3) == ([], [".tmp_taken_a2_step_00000030_a1"])
        assert (run.checkpoints / ".tmp_taken_a2_step_00000030_a1" / "half").read_bytes() == b"x"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=120)
    assert take_away(run, 4) == ([".tmp_taken_a2_step_00000030_a1"], [])
    assert leftovers(run) == []


def test_what_a_newer_attempt_stages_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    newer = Staged(run.staged_checkpoint(30, 5))
    assert take_away(run, 4) == ([], []) and newer.path.is_dir()
    newer.drop()
    assert leftovers(run) == []


def test_a_resume_of_an_older_attempt_touches_nothing(tmp_path: Path) -> None:
    """It was started late: a newer one owns the run, and the damaged checkpoint is that one's to put away."""
    run = make_run(tmp_path)
    saver = checkpointer(run)
    assert save(saver, OLD) and save(saver, NEWEST)
    (run.checkpoint(NEWEST) / "__0_0.bin").write_bytes(b"")
    Staged(run.staged_checkpoint(30, 1))
    run.epoch.write_text("3\n")
    before = sorted(p.name for p in run.checkpoints.iterdir())
    with pytest.raises(StaleEpochError):
        choose(checkpointer(run, 2))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == before
    assert verified(run) == [OLD]
