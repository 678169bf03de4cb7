"""`orch decode` on a pod over SSH: prompts from here, weights from there, replies brought home."""

from __future__ import annotations

import json

import pytest

from tests.far.conftest import POD, Far
from workloads.contract.files import read_json

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_a_run_that_was_trained_there_answers_prompts_of_here(far: Far) -> None:
    orch = far.orch
    orch(
        "launch", "tiny", "--pod", POD, "--set", "train.steps=4", "--set", "checkpoint.every_steps=2",
        "--set", "resources.gpus_per_rank=0", "--follow",
    )  # fmt: skip
    (orch.work / "prompts.txt").write_text("def f(\nimport\n")
    told = orch.json("decode", "--from", "tiny", "--prompts", "prompts.txt", "--max-new-tokens", "4", "--device", "cpu")
    assert (told["pod"], told["state"], [t["prompt"] for t in told["turns"]]) == (
        POD,
        "succeeded",
        ["def f(", "import"],
    )
    trained = told["summary"]["weights"]["run"]
    assert trained.startswith("tiny-") and told["summary"]["weights"]["step"] == 4
    there, here = far.run_there(told["run"]), far.mirror(told["run"])
    for path in (there.decode_rows, there.decode_summary, there.decode_basis):
        assert (here.path / path.name).read_bytes() == path.read_bytes()
    assert read_json(there.run_json)["job"]["decode"]["prompts"] == [["def f("], ["import"]]
    process = orch.popen("decode", "--from", trained, "--pod", "local", "--json")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and json.loads(out)["error"]["code"] == "E-DECODE-023"
