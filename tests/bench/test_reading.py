"""What the operator makes of a bench run: table, document, CSV, report, and rows that are not to be believed."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.bench import CSV, as_csv, result_of
from orchestrator.runs.benchcompare import compare
from orchestrator.runs.benchreport import file_report
from orchestrator.runs.report import next_lines
from orchestrator.runs.views import snapshot
from orchestrator.runs.waiting import pulse
from tests.bench.rows import Row, row, slowed
from tests.cli.conftest import Made, make_run
from workloads.contract.errors import IntegrityError
from workloads.contract.files import atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.contract.rundir import OrchHome

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ENVIRONMENT = {
    "device": "cuda", "gpu": "NVIDIA H200", "gpus": 1, "driver": "580.1", "torch": "2.11.0", "triton": "3.6.0",
    "python": "3.12.3", "code": "0123456789abcdef", "workloads": "fedcba9876543210",
}  # fmt: skip
FEW = [
    row("B16 S2048"),
    row("B16 S8192", 62.3, limit_us=57.2, must_us=None, met="-", peers={}),
    row("read 4 MiB", 2.8, suite="bandwidth", err=None, tol=None, must_us=None, peers={}, peer_notes={}, ratio=0.32),
    row("B16 S128", None, verdict="wrong", ratio=None, err=1.0),
    row("B16 S256", None, verdict="failed", ratio=None, err=None, tol=None, error="RuntimeError: no\x1b[2J room"),
]


def answered(home: OrchHome, rows: list[Row], *, state: str = "", **more: Any) -> Made:
    made = make_run(home, "bench", world=1, kind="bench")
    wrong = sum(r["verdict"] != "ok" for r in rows)
    word, why = ("no-go", f"{wrong} of {len(rows)} cases") if wrong else ("go", f"{len(rows)} cases")
    made.status(state or {"go": "succeeded", "no-go": "failed"}[word], f"{word}: {why}")
    made.run.bench_rows.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {
        "cases": len(rows), "wrong": wrong, "absent": ["comm"], "suites": ["bandwidth", "kv-decode"], "quick": False,
        "seed": 0, "environment": ENVIRONMENT, "commit": "c" * 40, "dirty": False,
        "command": "orch bench kv-decode --pod box", **more,
    }  # fmt: skip
    atomic_write_json(made.run.verdict, as_wire(RunVerdict(made.run.run_id, 1, word, why, 1.0, data)))
    return made


def result(made: Made, pod: str = "box") -> Any:
    return result_of(snapshot(made.run, time.time()), pod)


def golden(name: str, told: str, made: Made) -> None:
    told = told.replace(str(made.run.path), "<dir>").replace(made.run.run_id, "<run>")
    if os.environ.get("ORCH_REGEN"):
        (GOLDEN / name).write_text(told)
    assert told == (GOLDEN / name).read_text()


def test_the_document_is_what_it_was(home: OrchHome) -> None:
    made = answered(home, FEW)
    compared = compare(slowed(FEW, 1 / 1.2), FEW, 0.05, "old.jsonl").as_json()
    document = {**result(made).as_json(), "compare": compared, "report": None, "csv": None}
    golden("bench.json", json.dumps(document, indent=1) + "\n", made)


def test_the_table_is_what_it_was(home: OrchHome) -> None:
    made = answered(home, FEW)
    compared = compare([*slowed(FEW, 1 / 1.2), row("gone")], FEW, 0.05, "old.jsonl")
    golden("bench.txt", "\n".join([*result(made).lines(), "", *compared.lines(), ""]), made)


@pytest.mark.parametrize(
    ("rows", "more"), [(FEW[:3], {"cases": 2}), (FEW[:3], {"state": "failed"}), (FEW, {"wrong": 0})]
)
def test_a_verdict_that_is_not_that_of_its_rows_is_none(home: OrchHome, rows: list[Row], more: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="not that of its rows"):
        result(answered(home, rows, **more))


def test_hostile_rows(home: OrchHome) -> None:
    made = make_run(home, "bench", world=1, kind="bench")
    bad = [
        {**row("a"), "us": "fast", "peers": [1], "ratio": "x"},
        {**row("b"), "peers": {"p": "soon", "q": None}, "err": [], "must_us": "soon", "how": {"a": 1}, "read_tbs": "x"},
        {"suite": "kv-decode", "case": "c\x1b[2J"}, {"suite": 1}, {**row("d"), "peer_notes": {"x": "y\x1b"}, "l2": 7},
    ]  # fmt: skip
    made.run.bench_rows.write_text("[\nnull\n" + "".join(json.dumps(r) + "\n" for r in bad))
    made.status("halted", "halted by me")
    shown = result(made)
    assert len(shown.rows) == 4 and "\x1b" not in "\n".join(shown.lines()) + as_csv(shown.rows)
    assert json.dumps(shown.as_json(), allow_nan=False) and shown.verdict is None


def test_what_the_kernels_will_choose_is_said(home: OrchHome) -> None:
    made = answered(home, FEW[:3])
    rule = {"group": 1, "head_dim": 64, "dtype": "fp16", "pairs": 128, "from_length": 128, "backend": "triton"}
    atomic_write_json(made.run.thresholds, {"rules": [rule]})
    assert ("thresholds", "ours at every length that was measured, 1 shape") in result(made).facts()
    atomic_write_json(made.run.thresholds, {"rules": [rule, {**rule, "from_length": 8192, "backend": "sdpa-cudnn"}]})
    (told,) = [text for name, text in result(made).facts() if name == "thresholds"]
    assert told == "sdpa-cudnn from 8192 keys (1 heads a KV head of 64, fp16, 128 pairs)"
    for bad in ({"rules": 7}, {"rules": [None, "x", {}]}, {}):
        atomic_write_json(made.run.thresholds, bad)
        assert not [name for name, _ in result(made).facts() if name == "thresholds"]


def test_csv_holds_every_row_and_no_formula(home: OrchHome) -> None:
    text = as_csv([*FEW, row('=cmd|"/c calc"!A1', command="-x", dtype="a,b\nc")])
    back = list(csv.DictReader(io.StringIO(text)))
    assert len(back) == 6 and tuple(back[0]) == CSV
    assert (back[0]["case"], back[0]["us"], back[0]["best_peer"], back[0]["best_peer_us"]) == (
        "B16 S2048", "20.0", "fa3", "21.2",
    )  # fmt: skip
    assert back[1]["best_peer"] == "" and back[3]["us"] == "" and back[3]["verdict"] == "wrong"
    assert back[5]["case"].startswith("'=cmd") and back[5]["command"] == "'-x" and back[5]["dtype"] == "a,b c"


def test_a_report_says_what_was_compared_and_overwrites_none(home: OrchHome, tmp_path: Path) -> None:
    made, now = answered(home, FEW), 1_795_253_400.0
    compared = compare(slowed(FEW, 1 / 1.2), FEW, 0.05, "old.jsonl")
    first = file_report(result(made), compared, tmp_path, now)
    second = file_report(result(made), None, tmp_path, now)
    text, day = first.read_text(), time.strftime("%Y-%m-%d", time.localtime(now))
    assert first == tmp_path / "reports" / f"{day} Test Engineer Report - Benchmark on box v1.md"
    assert second.name.endswith(" v2.md") and "replaces version 1" in second.read_text()
    for heading in ("Verdict", "Objectives", "Environment", "Exact commands", "Results", "Comparison", "Evidence"):
        assert f"\n## {heading}\n" in text
    assert "**no-go: 2 of 5 cases; regression: 3 of 3 cases slower" in text and "\x1b" not in text
    assert "## Comparison" not in second.read_text() and str(made.run.bench_rows) in text


def test_what_to_type_next_and_the_live_line_fit_a_bench_run(home: OrchHome) -> None:
    made = answered(home, FEW, state="halted")
    ident = made.run.run_id
    told = [command.split(" ", 1)[1] for command, _ in next_lines(snapshot(made.run, time.time()))]
    assert told == [f"bench --run {ident}", f"logs {ident}", f"resume {ident}"]
    made.status("running", step=5, steps=9)
    made.beat(0, time.time(), step=5, steps=9)
    assert "case 5/9 | 2 wrong" in pulse(snapshot(made.run, time.time()))
