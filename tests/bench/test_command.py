"""`orch bench` of runs that are there: exit codes and comparisons, by the real command; nothing is launched."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.rows import Row, row, slowed
from tests.bench.test_reading import FEW, answered
from tests.cli.conftest import Orch
from workloads.contract.rundir import OrchHome

RIGHT = FEW[:3]


def written(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_a_run_is_compared_with_a_run_and_with_a_file(orch: Orch, home: OrchHome, tmp_path: Path) -> None:
    run = answered(home, RIGHT).run.run_id
    clean = orch("bench", "--run", run, "--compare", run)
    assert clean.code == 0 and clean.out.rstrip().endswith("clean: 3 cases, none slower by more than 5 %")
    before = ("bench", "--run", run, "--compare", written(tmp_path / "before.jsonl", slowed(RIGHT, 1 / 1.1)))
    slower = orch(*before)
    assert slower.code == 1 and "+10.0 %" in slower.out
    assert slower.out.rstrip().endswith("regression: 3 of 3 cases slower than before by more than 5 %")
    told = orch(*before, "--json")
    assert told.code == 1 and told.json["compare"]["regressions"] == 3 and told.json["verdict"] == "go"
    assert [c["case"] for c in told.json["compare"]["slower"]] == sorted(r["case"] for r in RIGHT)
    wide = orch(*before, "--tolerance", "12 %", "--csv", "rows.csv")
    assert wide.code == 0 and (tmp_path / "rows.csv").read_text().count("\n") == 4


def test_another_gpu_model_is_refused_but_for_force(orch: Orch, home: OrchHome, tmp_path: Path) -> None:
    run = answered(home, RIGHT).run.run_id
    other = written(tmp_path / "other.jsonl", [{**r, "device": "NVIDIA L4"} for r in RIGHT])
    refused = orch("bench", "--run", run, "--compare", other)
    assert refused.code == 6 and "error[E-BENCH-016]" in refused.err and "go: 3 cases" in refused.out
    assert "value: NVIDIA L4" in refused.err and "expected: NVIDIA H200" in refused.err
    assert orch("bench", "--run", run, "--compare", other, "--json").json["error"]["code"] == "E-BENCH-016"
    forced = orch("bench", "--run", run, "--compare", other, "--force")
    assert forced.code == 0 and "device: NVIDIA L4 then, NVIDIA H200 now" in forced.out
    both = written(tmp_path / "both.jsonl", [{**RIGHT[0], "device": "NVIDIA L4", "case": "x"}, *RIGHT])
    assert (
        orch("bench", "--run", run, "--compare", both)
        .out.rstrip()
        .endswith("clean: 3 cases, none slower by more than 5 %")
    )
    foreign = orch("bench", "--run", run, "--compare", written(tmp_path / "f.jsonl", [row("a", suite="comm")]))
    assert foreign.code == 6 and "error[E-BENCH-017]" in foreign.err


def test_a_wrong_case_is_exit_1_and_a_halted_run_75(orch: Orch, home: OrchHome) -> None:
    wrong = answered(home, FEW)
    told = orch("bench", "--run", wrong.run.run_id)
    assert told.code == 1 and told.out.rstrip().endswith("no-go: 2 of 5 cases") and "\x1b" not in told.out
    wrong.status("halted", "halted by me")
    wrong.run.verdict.unlink()
    halted = orch("bench", "--run", wrong.run.run_id)
    assert halted.code == 75 and "measure the rest" in halted.out and "go:" not in halted.out
