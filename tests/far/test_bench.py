"""`orch bench` on a pod over SSH: rows, page and plots come home, and another operator compares with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.rows import slowed
from tests.far.conftest import POD, Far
from tests.parity.trees import rows_of

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_measured_there_told_here_and_compared_by_another_operator(far: Far, tmp_path: Path) -> None:
    told = far.orch.json("bench", "bandwidth", "decoupled", "--pod", POD, "--device", "cpu", "--quick", "--file-report")
    assert (told["verdict"], told["why"], told["pod"]) == ("go", "8 cases", POD)
    there, here = far.run_there(told["run"]), far.mirror(told["run"])
    plots = sorted(p.name for p in there.path.glob("bench-*.png"))
    assert plots == [there.bench_plot("bandwidth").name]  # decoupled was measured at one length
    for name in (there.bench_rows.name, there.bench_report.name, there.bench_page.name, there.verdict.name, *plots):
        assert (here.path / name).read_bytes() == (there.path / name).read_bytes(), name
    assert not here.thresholds.exists() and "data:image/png;base64," in here.bench_page.read_text()
    assert f"Benchmark on {POD} v1.md" in told["report"] and str(here.bench_page) in Path(told["report"]).read_text()
    before = tmp_path / "before.jsonl"
    before.write_text("".join(json.dumps(r) + "\n" for r in slowed(rows_of(there.bench_rows), 1 / 1.1)))
    other = far.another_operator()
    try:
        other.json("runs", "--from", POD)
        assert other.json("bench", "--run", told["run"], "--compare", told["run"])["compare"]["compared"] == 8
        slower = other.json("bench", "--run", told["run"], "--compare", str(before), code=1)
        assert slower["compare"]["regressions"] == 8 and slower["rows"] == told["rows"]
    finally:
        other.remove()
