"""`orch bench` on a real card: the same code twice compares clean at 5 %, a slowed kernel does not. `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pods.facts import gpus_of
from pods.transport.local import LocalTransport
from tests.local.conftest import Orch
from tests.parity.trees import make_tree
from workloads.contract.files import read_json

pytestmark = [pytest.mark.ray, pytest.mark.gpu]
SUITES = ("bench", "bandwidth", "kv-decode", "--quick", "--device", "cuda")
CALL = "    return lambda: plan.run(*given, out=copy.out_BHSD)\n"
SLOWED = (
    "kernels/bench/dense.py", CALL,
    "    return lambda: (torch.cuda._sleep(20_000), plan.run(*given, out=copy.out_BHSD))\n",
)  # fmt: skip
"""About 10 us a step more, on steps of 10 to 60 us."""


@pytest.fixture(autouse=True)
def card() -> str:
    found = gpus_of(LocalTransport())[0]
    if not found:
        pytest.skip("needs an NVIDIA GPU")
    return found[0].name


def test_the_same_code_compares_clean_and_a_slowed_kernel_does_not(orch: Orch, card: str, tmp_path: Path) -> None:
    first = orch.json(*SUITES)
    run = orch.home.run(first["run"])
    assert (first["verdict"], first["environment"]["gpu"]) == ("go", card)
    assert all(r["how"] == "graph" and r["l2"] == "rotated" and r["read_tbs"] > 0 for r in first["rows"])
    assert read_json(run.thresholds)["gpu"] == first["rows"][0]["device"] and run.bench_page.exists()

    again = orch.json(*SUITES, "--compare", run.run_id)  # exit 0, or the test ends here with the slower cases
    assert again["compare"]["compared"] == len(first["rows"]) and not again["compare"]["slower"]

    orch.extra_env["PYTHONPATH"] = str(make_tree(tmp_path / "tree", SLOWED))
    try:
        slow = orch.json(*SUITES, "--compare", run.run_id, code=1)
    finally:
        del orch.extra_env["PYTHONPATH"]
    named = {c["case"] for c in slow["compare"]["slower"]}
    assert slow["verdict"] == "go" and named >= {r["case"] for r in first["rows"] if r["suite"] == "kv-decode"}
