"""`orch resume` of a training run none of whose checkpoints can be used: refused with exit code 8, each one named."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.checkpoints.killer import flip
from tests.checkpoints.saver import checkpointer, save

GOLDEN = Path(__file__).parents[1] / "golden" / "errors" / "cli_50_no_checkpoint_to_resume_from.txt"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(orch, make) -> None:
    made = make()
    run = made.run
    run.epoch.write_text("1\n")
    saver = checkpointer(run, keep=3)
    for step in (10, 20, 30):
        assert save(saver, step)
    flip(run.checkpoint(30) / "__0_0.bin")
    (run.checkpoint(20) / "__0_1.bin").unlink()
    os.truncate(run.manifest(run.checkpoint(10)), 100)
    made.status("failed", "rank 0 was killed by signal 9 (out of memory) at step 34")
    ran = orch("resume", run.run_id)
    text = ran.err.replace(run.run_id, "<run>").replace(str(run.path.parent), "<runs>")
    if os.environ.get("ORCH_REGEN"):
        GOLDEN.write_text(text)
    assert ran.code == 8 and text == GOLDEN.read_text()
    document = orch("resume", run.run_id, "--json")
    assert document.code == 8 and json.loads(document.out)["error"]["code"] == "E-RESUME-002"
    assert list(run.requests.iterdir()) == []  # nobody was asked
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [f"step_{s:08d}" for s in (10, 20, 30)]


def test_the_checkpoint_to_go_on_from_is_named_by_step_or_name(orch, make) -> None:
    made = make()
    run = made.run
    run.epoch.write_text("1\n")
    assert save(checkpointer(run), 10)
    made.status("failed", "rank 0 was killed by signal 9 (out of memory) at step 34")
    strange = orch("resume", run.run_id, "--checkpoint", "step_10")
    assert strange.code == 2 and "E-CLI-004" in strange.err
    for named in ("20", "step_00000020"):
        ran = orch("resume", run.run_id, "--checkpoint", named, "--json")
        error = json.loads(ran.out)["error"]
        assert (ran.code, error["code"], error["expected"]) == (2, "E-RESUME-004", "step_00000010")
    assert list(run.requests.iterdir()) == []
