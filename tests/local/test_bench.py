"""`orch bench` on this machine, from the command to the comparison: a real Ray, a real shim, real suites on the CPU."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest

from tests.bench.rows import slowed
from tests.bench.test_rank import BROKEN, SLOW
from tests.local.conftest import Orch, restarts_of, rows, wait_for
from tests.parity.trees import make_tree
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir

pytestmark = pytest.mark.ray
QUICK = ("--device", "cpu", "--quick")


def test_measured_told_compared_and_filed(orch: Orch) -> None:
    document = orch.json("bench", "kv-decode", "bandwidth", *QUICK, "--csv", "rows.csv", "--file-report")
    run = orch.home.run(document["run"])
    assert (document["verdict"], document["why"], document["state"]) == ("go", "6 cases", "succeeded")
    assert document["suites"] == ["kv-decode", "bandwidth"] and document["environment"]["device"] == "cpu"
    found = rows(run.bench_rows)
    assert [r["case"] for r in document["rows"]] == [r["case"] for r in found] and len(found) == 6
    assert all(r["command"] == "orch bench kv-decode bandwidth --quick --device cpu" for r in found)
    assert run.bench_page.exists() and run.bench_report.exists()
    with (orch.work / "rows.csv").open() as f:
        assert [r["case"] for r in csv.DictReader(f)] == [r["case"] for r in found]
    assert "**go: 6 cases**" in Path(document["report"]).read_text()

    faster = orch.work / "faster.jsonl"
    faster.write_text("".join(json.dumps(r) + "\n" for r in slowed(found, 1 / 1.1)))
    told = orch("bench", "--run", run.run_id, "--compare", str(faster), code=1)
    assert told.rstrip().endswith("regression: 6 of 6 cases slower than before by more than 5 %")
    assert f"page        {run.bench_page}" in told and "+10.0 %" in told


@pytest.mark.long
@pytest.mark.proof
def test_wrong_is_no_go_and_left_alone_halted_and_resumed_it_measures_only_the_rest(orch: Orch, tmp_path: Path) -> None:
    orch.extra_env["PYTHONPATH"] = str(make_tree(tmp_path / "tree", SLOW, BROKEN))
    try:
        wrong = orch.json("bench", "kv-decode", *QUICK, code=1)
        assert (wrong["verdict"], wrong["wrong"], wrong["why"]) == ("no-go", 2, "2 of 2 cases")
        run = orch.home.run(wrong["run"])
        assert orch.status(run)["exit_codes"] == {"0": 78} and restarts_of(run) == []
        before = set(orch.home.runs.glob("bench-*"))
        process = orch.popen("bench", "decoupled", *QUICK)
        run = RunDir(wait_for(lambda: set(orch.home.runs.glob("bench-*")) - before, 300).pop())
        wait_for(lambda: len(rows(run.bench_rows)) >= 1, 600, lambda: orch.story(run))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 130 and f"orch bench --run {run.run_id}" in err, out + err
        orch("halt", run.run_id)
        done = [r["case"] for r in rows(run.bench_rows)]
        assert 1 <= len(done) < 4 and read_json(run.halt_ack(0))["step"] == len(done)
        halted = orch.json("bench", "--run", run.run_id, code=75)
        assert (halted["verdict"], halted["cases"], halted["state"]) == (None, len(done), "halted")
        orch("resume", run.run_id)
        told = orch("bench", "--run", run.run_id)
        cases = [r["case"] for r in rows(run.bench_rows)]
        assert told.rstrip().endswith("go: 4 cases") and cases[: len(done)] == done and len(set(cases)) == 4
    finally:
        del orch.extra_env["PYTHONPATH"]
