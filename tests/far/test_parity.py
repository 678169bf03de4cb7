"""`orch parity` on a pod over SSH: the verdict is the pod's, and every operator finds it there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.far.conftest import POD, Far
from tests.parity.trees import BROKEN, FEW, SUITE, a_cell, make_tree, rows_of
from workloads.contract.files import read_json

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.proof]


def test_go_there_no_go_with_a_wrong_line_and_both_are_known_to_others(far: Far, tmp_path: Path) -> None:
    orch = far.orch
    try:
        orch.extra_env["PYTHONPATH"] = str(make_tree(tmp_path / "good", FEW))
        good = orch.json("parity", SUITE, "--pod", POD, "--device", "cpu", "--file-report")
        assert (good["verdict"], good["why"], good["pod"]) == ("go", "6 cells", POD)
        there, here = far.run_there(good["run"]), far.mirror(good["run"])
        for path in (there.parity_rows, there.parity_report, there.verdict, there.parity_basis):
            assert (here.path / path.name).read_bytes() == path.read_bytes()
        assert [r["case"] for r in good["rows"]] == [r["case"] for r in rows_of(there.parity_rows)]
        report = Path(good["report"])
        assert f"Kernel parity on {POD} v1.md" in report.name and str(here.parity_rows) in report.read_text()
        (kept,) = far.there.home.parity.iterdir()
        assert read_json(kept)["run"] == good["run"] and not orch.home.parity.exists()

        orch.extra_env["PYTHONPATH"] = str(make_tree(tmp_path / "bad", BROKEN))
        cell = a_cell(plan="2p2", null="contiguous")
        out = orch("parity", SUITE, "--pod", POD, "--device", "cpu", "--only", cell, code=1)
        assert out.rstrip().endswith("no-go: 1 of 1 cell")
        assert f"parity {SUITE} --only {cell} --pod {POD} --device cpu" in out
        code, document = _refused(far)
        assert code == 6 and document["error"]["fix"] == f"orch parity --pod {POD}"
    finally:
        orch.extra_env.pop("PYTHONPATH", None)
    other = far.another_operator()
    try:
        other.json("runs", "--from", POD)
        told = other.json("parity", "--run", good["run"])
        assert (told["verdict"], told["rows"]) == ("go", good["rows"])
    finally:
        other.remove()


def _refused(far: Far) -> tuple[int, dict[str, dict[str, str]]]:
    """A job that requires parity, with kernels that nobody has judged as a whole."""
    process = far.orch.popen("launch", "tiny", "--pod", POD, "--set", "require=[parity]", "--json")
    out, _ = process.communicate(timeout=120)
    return process.returncode, json.loads(out)
