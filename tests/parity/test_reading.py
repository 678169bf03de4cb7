"""What the operator makes of a parity run: table, document, report, and verdicts that are not to be believed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.parity import read_rows, result_of
from orchestrator.runs.report import next_lines
from orchestrator.runs.testreport import file_report
from orchestrator.runs.views import snapshot
from tests.cli.conftest import Made, make_run
from workloads.contract.errors import IntegrityError, LocalError
from workloads.contract.files import atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.contract.rundir import OrchHome, RunDir

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "parity.json"
ENVIRONMENT = {
    "device": "cuda", "gpu": "NVIDIA H200", "driver": "570.1", "torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3",
    "code": "0123456789abcdef",
}  # fmt: skip
NAN = '{"suite": "parity-decoupled", "case": "nan", "err": NaN, "tol": 1.0, "verdict": "WRONG: x"}\n'


def row(case: str, verdict: str = "ok", **more: Any) -> dict[str, Any]:
    base = {
        "v": 1, "suite": "parity-kv-decode", "case": case, "shape": {"B": 2}, "dtype": "fp16", "err": 1.5e-4,
        "tol": 2e-4, "worst": [0, 3, 8], "verdict": verdict, "device": "NVIDIA H200", "driver": "570.1",
        "torch": "2.11.0", "triton": "3.6.0", "commit": "c" * 40,
        "command": f"python -m kernels.parity kv-decode --only '{case}'",
    }  # fmt: skip
    return {**base, **more}


def answered(
    home: OrchHome, rows: list[dict[str, Any]], *, verdict: str | None = None, state: str = "", **more: Any
) -> Made:
    made = make_run(home, "parity", world=1, kind="parity")
    wrong = sum(r["verdict"] != "ok" for r in rows)
    word = verdict or ("no-go" if wrong else "go")
    why = f"{wrong} of {len(rows)} cells" if wrong else f"{len(rows)} cells"
    made.status(state or {"go": "succeeded", "no-go": "failed"}[word], f"{word}: {why}")
    made.run.parity_rows.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {
        "cells": len(rows), "wrong": wrong, "left_out": 0, "suites": ["kv-decode"], "full": True, "only": None,
        "seed": 3, "environment": ENVIRONMENT, "commit": "c" * 40, "dirty": False,
        "command": "orch parity kv-decode --pod box",
    }  # fmt: skip
    said = RunVerdict(made.run.run_id, 1, word, why, 1.0, {**data, **more})
    atomic_write_json(made.run.verdict, as_wire(said))
    return made


def result(made: Made, pod: str = "box") -> Any:
    return result_of(snapshot(made.run, time.time()), pod)


def test_the_document_is_what_it_was(home: OrchHome) -> None:
    made = answered(home, [row("a"), row("b", "WRONG: error 1", err=1.0)])
    told = json.dumps({**result(made).as_json(), "report": None}, indent=1) + "\n"
    told = told.replace(str(made.run.path), "<dir>").replace(made.run.run_id, "<run>")
    if os.environ.get("ORCH_REGEN"):
        GOLDEN.write_text(told)
    assert told == GOLDEN.read_text()


def test_wrong_cells_come_first_each_with_what_judges_it_alone(home: OrchHome) -> None:
    said = "failed: CompilationError: \x1b[2J" + "x" * 300
    rows = [
        row("good one"),
        row("bad; rm", "WRONG: error 1", err=1.0),
        row("died", said, err=None, tol=None, worst=None),
    ]
    lines = result(answered(home, rows)).lines()
    assert [x.split()[0] for x in lines[:4]] == ["SUITE", "kv-decode", "alone:", "kv-decode"]
    assert lines[2].strip().endswith("parity kv-decode --only 'bad; rm' --pod box")
    assert "CompilationError" in lines[4] and "\x1b" not in "".join(lines) and "good one" in lines[6]
    assert lines[-1] == "no-go: 2 of 3 cells"
    assert any("NVIDIA H200, driver 570.1" in x for x in lines)


def test_the_command_that_repeats_a_cell_keeps_device_and_seed(home: OrchHome) -> None:
    made = answered(home, [row("x", "WRONG: y")])
    doc = json.loads(made.run.run_json.read_text())
    doc["job"]["parity"] = {"device": "cpu", "seed": 7}
    made.run.run_json.write_text(json.dumps(doc))
    assert result(made, "local").alone(row("x")).endswith("parity kv-decode --only x --device cpu --seed 7")


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        ([row("a", "WRONG: y")], {"verdict": "go", "wrong": 0}),
        ([row("a", "WRONG: y")], {"verdict": "go"}),
        ([row("a")], {"cells": 2}),
        ([row("a")], {"verdict": "no-go"}),
        ([row("a")], {"state": "failed"}),
    ],
)
def test_a_verdict_that_is_not_that_of_its_rows_is_none(
    home: OrchHome, rows: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    with pytest.raises(IntegrityError, match="not that of its rows"):
        result(answered(home, rows, **more))


def test_an_old_verdict_and_one_of_a_living_run_are_none(home: OrchHome) -> None:
    made = answered(home, [row("a")])
    made.status("succeeded", "go: 1 cell", attempt=2)
    assert result(made).verdict is None and result(made).as_json()["verdict"] is None
    made.status("running", "", attempt=1)
    assert result(made).verdict is None


def test_hostile_rows(home: OrchHome) -> None:
    made = make_run(home, "parity", world=1, kind="parity")
    bad = ["[1]", "{", "null", '{"suite": 1, "case": "x"}', '{"suite": "s"}', "[" * 5000, "\x00", NAN.strip()]
    good = json.dumps(row("g", err="high", tol=None, worst={"a": 1}))
    made.run.parity_rows.write_text("\n".join([*bad, good, good]) + "\n")
    found = read_rows(made.run)
    assert [r["case"] for r in found] == ["nan", "g"] and "err" not in found[0]
    made.status("halted", "halted by me")
    shown = result(made)
    assert len(shown.lines()) > 3 and json.dumps(shown.as_json(), allow_nan=False)
    made.run.parity_rows.unlink()
    made.run.parity_rows.symlink_to("/etc/hostname")
    assert read_rows(made.run) == () and "no cell was judged" in result(made).lines()[0]


def test_a_second_report_of_a_day_replaces_the_first_and_overwrites_none(home: OrchHome, tmp_path: Path) -> None:
    found, now = result(answered(home, [row("a"), row("b", "WRONG: error 1", err=1.0)])), 1_795_253_400.0
    first = file_report(found, tmp_path, now)
    text = first.read_text()
    second, other = file_report(found, tmp_path, now), file_report(replace(found, pod="lab/../x"), tmp_path, now)
    day = time.strftime("%Y-%m-%d", time.localtime(now))
    assert first == tmp_path / "reports" / f"{day} Test Engineer Report - Kernel parity on box v1.md"
    assert second.name.endswith(" v2.md") and "replaces version 1" in second.read_text() and first.read_text() == text
    assert other.parent == first.parent and other.name.endswith("on lab-..-x v1.md")
    for heading in ("Verdict", "Objectives", "Environment", "Exact commands", "Results", "Evidence"):
        assert f"\n## {heading}\n" in text
    assert "**no-go: 1 of 2 cells**" in text and "orch parity kv-decode --pod box" in text
    assert "NVIDIA H200, driver 570.1" in text and str(found.view.run.parity_rows) in text
    assert file_report(found, tmp_path, now + 86_400).name.endswith(" v1.md")
    with pytest.raises(LocalError, match="cannot be filed"):
        file_report(found, Path("/proc"), now)


def test_a_run_without_rows(tmp_path: Path) -> None:
    assert read_rows(RunDir(tmp_path)) == ()


def test_what_to_type_next_fits_a_parity_run(home: OrchHome) -> None:
    made = answered(home, [row("a", "WRONG: y")])
    ident = made.run.run_id

    def told() -> list[str]:
        return [command.split(" ", 1)[1] for command, _ in next_lines(snapshot(made.run, time.time()))]

    assert told() == [f"parity --run {ident}", f"logs {ident}"]
    made.status("halted")
    assert told()[-1] == f"resume {ident}"
    made.status("running")
    assert told() == [f"parity --run {ident}", f"halt {ident}"]
