"""The error with which a rank ended is in the reason: of this attempt, in one line, harmless."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.supervisor.lastwords import last_error
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run, request
from workloads.contract.errors import MissingDataError
from workloads.contract.rundir import OrchHome

GONE = MissingDataError("E-DATA-001", "the data are not there", where="/mnt/edu", fix="mount it").render()


def test_the_reason_of_an_end_says_what_the_rank_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    once = "import os; print({!r} if os.environ['ORCH_ATTEMPT'] == '1' else 'boom', flush=True); raise SystemExit({})"
    argv = [sys.executable, "-c", once.format(GONE, 1)]
    desk = Desk(make_run(OrchHome(tmp_path / "home"), argv, restart={"max": 0, "backoff_s": [0]}))
    try:
        desk.until("failed")
        told = "rank 0 ended with exit code 1: the data are not there (E-DATA-001, /mnt/edu)"
        assert desk.status["reason"] == told and desk.events("rank-exit")[0]["why"] == told
        request(desk.run, "resume", "two")
        assert desk.until("failed", 2)["reason"] == "rank 0 ended with exit code 1"  # that was said before
    finally:
        desk.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [(f"step 5\n{GONE}\n", "the data are not there (E-DATA-001, /mnt/edu)"),
     (f"{GONE}\nlater words\nerror[E-X]: no\n", "the data are not there (E-DATA-001, /mnt/edu)"),
     ("error[E-TRAIN-003]: a\x1b[2Jb\n", "a\\x1b[2Jb (E-TRAIN-003)"), ("Traceback\n", ""), ("", ""),
     ("error[E-TRAIN-003]: " + "x" * 9000, "x" * 239 + "…")],
)  # fmt: skip
def test_the_last_error_of_a_log(tmp_path: Path, text: str, told: str) -> None:
    log = tmp_path / "rank0.log"
    log.write_text("older\n" + text)
    assert last_error(log, 6) == told
    assert last_error(log, 6 + len(text.encode())) == "" and last_error(tmp_path / "none", 0) == ""
