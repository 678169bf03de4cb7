"""What `orch dump` shows: where every rank is first, then each stack; an answer of a pod is not trusted."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.runs.stacks import dump_lines
from tests.cli.test_cli_control import answer, running
from workloads.contract.rundir import RunDir

SUMMARY = "7 ranks in all_reduce at train.py:212; rank 3 in next(loader) at data.py:88"
GROUPS = [
    {"ranks": [3], "where": "next(loader) at data.py:88", "text": "three\n"},
    {"ranks": [0, 1, 2, 4, 5, 6, 7], "where": "all_reduce at train.py:212", "text": "seven\n"},
]


def test_the_summary_comes_first_and_the_odd_one_before_the_many() -> None:
    data = {"summary": SUMMARY, "seconds": 0.31, "groups": GROUPS, "files": ["a.txt"], "notes": ["rank 3 pid 9: late"]}
    assert dump_lines(RunDir(Path("/r")), data) == [
        f"{SUMMARY}   (0.3 s)", "",
        "=== rank 3: next(loader) at data.py:88", "three", "",
        "=== rank 0, 1, 2, 4, 5, 6, 7: all_reduce at train.py:212", "seven", "",
        "note: rank 3 pid 9: late", "files:", "  /r/stackdumps/a.txt",
    ]  # fmt: skip


def test_odd_answers_are_shown_as_far_as_they_make_sense() -> None:
    assert dump_lines(RunDir(Path("/r")), {}) == ["no rank had a stack to show"]
    odd = {"summary": 3, "seconds": "x", "groups": [7, {"ranks": 1, "where": None, "text": "\x1b[2J"}], "notes": "no"}
    assert dump_lines(RunDir(Path("/r")), odd) == ["=== rank ", "\\x1b[2J", ""]
    evil = {"summary": "a\x1b[2J\nb" + "c" * 9000}
    (line, _) = dump_lines(RunDir(Path("/r")), evil)
    assert line.startswith("a\\x1b[2J b") and len(line) <= 2000


def test_dump_as_typed(orch, make):
    made = running(make)
    process = orch.start("dump", "tiny", "--json")
    answer(made.run, "dump", summary=SUMMARY, seconds=0.31, groups=GROUPS, files=[], notes=[])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["summary"] == SUMMARY and told["groups"] == GROUPS and told["seconds"] == 0.31


def test_too_many_dumps_name_the_newest_files(orch, make):
    made = running(make)
    process = orch.start("dump", "tiny")
    why = "too many dumps: 6 in the last 60 s; the newest files are watchdog_stackdump_rank3_x.txt"
    answer(made.run, "dump", ok=False, why=why, files=["watchdog_stackdump_rank3_x.txt"], notes=[])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 7 and "E-DUMP-004" in err and "too many dumps: 6 in the last 60 s" in err
    assert f"ls -t {made.run.stackdumps}" in err
