"""Names: ids that cannot leave their folder, one module that owns file names, states that follow each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.contract.rundir import OrchHome, RunDir, make_run_id, run_name_of, step_of_checkpoint, verb_of_request
from workloads.contract.states import ENDED, RESUMABLE, TRANSITIONS, RunState

ROOT = Path(__file__).parents[2]


def test_run_ids() -> None:
    run_id = make_run_id("tiny", 1795227777.0)
    assert re.fullmatch(r"tiny-20261121T\d{6}Z-[0-9a-f]{4}", run_id)
    assert run_name_of(run_id) == "tiny"
    with pytest.raises(ValueError):
        make_run_id("Bad Name; rm -rf")


@given(st.text(max_size=60))
def test_no_name_leaves_the_runs_folder(text: str) -> None:
    home = OrchHome(Path("/h"))
    try:
        path = home.run(text).path
    except ValueError:
        return
    assert path.parent == home.runs and "/" not in path.name and path.name not in ("", ".", "..")


def test_checkpoint_names() -> None:
    run = RunDir(Path("/r"))
    assert step_of_checkpoint(run.checkpoint(120).name) == 120
    assert step_of_checkpoint(run.staged_checkpoint(120, 1).name) is None
    assert step_of_checkpoint("step_1") is None


def test_requests_are_told_from_answers_and_from_what_others_leave() -> None:
    request = RunDir(Path("/r")).request("resume", "1f3a9c02")
    assert verb_of_request(request.name) == "resume"
    stem = request.name.removesuffix(".json")
    assert verb_of_request("20261121T093000Z-dump-a1e900.json") == "dump"
    for name in (
        RunDir.ack_of(request).name, f"{stem} (conflicted copy).json", f"{request.name}.tmp.77", f"{stem}\n.json",
        f"{stem}.ack (1).json", "notes-resume-1.json", "",
    ):  # fmt: skip
        assert verb_of_request(name) is None, name


def test_one_module_spells_the_file_names() -> None:
    """`.HALT`, `heartbeat_` and their like are spelled in rundir.py; elsewhere only in comments, docs and messages."""
    owner = ROOT / "workloads/contract/rundir.py"
    names = r"\.HALT|heartbeat_rank|halt_ack_rank|status\.json|events\.jsonl|run\.json|ledger\.jsonl"
    pattern = re.compile(rf"""["'/](?:{names})["'{{]""")
    offenders = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for package in ("orchestrator", "pods", "workloads", "kernels")
        for path in (ROOT / package).rglob("*.py")
        if path != owner
        for match in pattern.finditer(path.read_text())
    ]
    assert offenders == []


def test_states() -> None:
    assert set(TRANSITIONS) == set(RunState)
    for state in ENDED:
        expected = {RunState.RESUMING} if state in RESUMABLE else set()
        assert TRANSITIONS[state] == expected
    assert all(TRANSITIONS[s] & ENDED for s in RunState if s not in ENDED)
