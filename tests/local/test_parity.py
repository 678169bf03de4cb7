"""`orch parity` on this machine, from the command to the verdict: a real Ray, a real shim, real kernels."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.conftest import Orch, restarts_of, wait_for
from tests.parity.trees import BROKEN, CASES, FEW, SUITE, a_cell, make_tree, rows_of
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir

pytestmark = pytest.mark.ray
SLOW = (
    CASES, "    with torch.no_grad(), _poisoned():\n",
    "    __import__('time').sleep(1.0)\n    with torch.no_grad(), _poisoned():\n",
)  # fmt: skip
NO_GPU = ("--set", "resources.gpus_per_rank=0")


@pytest.fixture
def tree(orch: Orch, tmp_path: Path) -> Iterator[Path]:
    """A checkout of a person's own, from which this home's `orch` runs meanwhile."""
    orch.extra_env["PYTHONPATH"] = str(tmp_path / "tree")
    yield tmp_path / "tree"
    orch.extra_env.pop("PYTHONPATH", None)


def run_of(orch: Orch, text: str) -> RunDir:
    found = re.search(r"parity-\d{8}T\d{6}Z-[0-9a-f]{4}", text)
    assert found, text
    return orch.home.run(found[0])


def test_go_and_no_go_from_the_command_to_the_verdict(orch: Orch, tree: Path) -> None:
    make_tree(tree, BROKEN)
    cell = a_cell(plan="2p2", null="contiguous")
    out = orch("parity", SUITE, "--device", "cpu", "--only", cell, code=1)
    run = run_of(orch, out)
    told = out.rstrip().splitlines()
    assert told[-1] == "no-go: 1 of 1 cell" and sum(line.endswith("WRONG") for line in told) == 1
    assert any(line.endswith(f"parity {SUITE} --only {shlex.quote(cell)} --device cpu") for line in told), out
    status = orch.status(run)
    assert (status["state"], status["reason"], status["attempt"]) == ("failed", "no-go: 1 of 1 cell", 1)
    assert status["exit_codes"] == {"0": 78} and restarts_of(run) == []
    document = orch.json("parity", "--run", run.run_id, code=1)
    assert (document["verdict"], document["wrong"], document["pod"]) == ("no-go", 1, "local")
    assert (
        document["rows"][0]["case"] == cell
        and document["commit"] == f"tree {Path(read_json(run.run_json)['tree']).name}"
    )

    del orch.extra_env["PYTHONPATH"]  # the checkout without the wrong line
    good = orch.json("parity", SUITE, "--device", "cpu", "--only", cell, "--file-report")
    assert (good["verdict"], good["why"], good["state"]) == ("go", "1 cell", "succeeded")
    assert "**go: 1 cell**" in Path(good["report"]).read_text() and Path(good["report"]).parent == orch.work / "reports"


@pytest.mark.long
@pytest.mark.proof
def test_left_alone_halted_and_resumed_it_judges_only_the_rest(orch: Orch, tree: Path) -> None:
    make_tree(tree, FEW, SLOW)
    before = set(orch.home.runs.glob("parity-*"))
    process = orch.popen("parity", SUITE, "--device", "cpu")
    run = RunDir(wait_for(lambda: set(orch.home.runs.glob("parity-*")) - before, 300).pop())
    wait_for(lambda: len(rows_of(run.parity_rows)) >= 2, 600, lambda: orch.story(run))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and f"orch parity --run {run.run_id}" in err, out + err
    assert orch.state(run) == "running"
    orch("halt", run.run_id)
    done = [r["case"] for r in rows_of(run.parity_rows)]
    assert 2 <= len(done) < 6 and read_json(run.halt_ack(0))["step"] == len(done)
    halted = orch.json("parity", "--run", run.run_id, code=75)
    assert (halted["verdict"], halted["cells"], halted["state"]) == (None, len(done), "halted")
    orch("resume", run.run_id)
    out = orch("parity", "--run", run.run_id)
    cases = [r["case"] for r in rows_of(run.parity_rows)]
    assert out.rstrip().endswith("go: 6 cells") and cases[: len(done)] == done and len(set(cases)) == len(cases) == 6
    log = run.rank_log(0).read_text()
    assert f"going on behind the {len(done)} of 6 cells" in log and log.count("\ncell ") + log.startswith("cell ") == 6


@pytest.mark.long
def test_a_job_that_requires_parity_is_launched_once_every_suite_is_go(orch: Orch, tree: Path) -> None:
    every = "[*map(_cell, _take_turns(chosen)), *special(full)]"
    make_tree(tree, FEW, ("kernels/kv_decode/matrix.py", f"    return {every}\n", f"    return {every}[:3]\n"))
    careful = ("launch", "tiny", "--set", "require=[parity]", "--set", "train.steps=2", *NO_GPU)
    process = orch.popen(*careful)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 6 and "error[E-PLAN-015]" in err and "fix:   orch parity\n" in err, err
    whole = orch.json("parity", "--device", "cpu")
    assert (whole["verdict"], whole["cells"]) == ("go", 9)
    run = orch.launch(*careful[1:])
    orch.wait(run, "succeeded", "failed")
    assert orch.state(run) == "succeeded"


@pytest.mark.long
def test_a_wrong_cell_is_wrong_by_hand_too(orch: Orch, tree: Path) -> None:
    make_tree(tree, BROKEN)
    cell = a_cell(plan="2p2", null="contiguous")
    row = orch.json("parity", SUITE, "--device", "cpu", "--only", cell, code=1)["rows"][0]
    argv = [sys.executable, *shlex.split(row["command"])[1:]]
    alone = subprocess.run(argv, cwd=tree, env=orch.env, capture_output=True, text=True, timeout=600, check=False)
    assert alone.returncode == 1 and "no-go: 1 of 1 cells" in alone.stdout, alone.stdout + alone.stderr
