"""`orch parity` on a real card: its name and driver as a plan sees them; a cell that ruins the process. `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pods.facts import gpus_of
from pods.transport.local import LocalTransport
from tests.local.conftest import Orch, restarts_of
from tests.parity.trees import CASES, FEW, SUITE, make_tree

pytestmark = [pytest.mark.ray, pytest.mark.gpu]
ON_CARD = ("--set", "resources.ranks=1", "--set", "resources.gpus_per_rank=1")
ILLEGAL = (
    CASES, "    with torch.no_grad(), _poisoned():\n",
    "    far = torch.tensor([1 << 40], device=device)\n"
    "    if cell.id == cells(False)[1].id: torch.ones(1, device=device)[far].sum().item()\n"
    "    with torch.no_grad(), _poisoned():\n",
)  # fmt: skip


@pytest.fixture(autouse=True)
def card() -> str:
    found = gpus_of(LocalTransport())[0]
    if not found:
        pytest.skip("needs an NVIDIA GPU")
    return found[0].name


def test_every_suite_is_go_and_a_job_that_requires_it_is_planned(orch: Orch, card: str) -> None:
    told = orch.json("parity", "--device", "cuda", "--file-report")
    assert (told["verdict"], told["wrong"]) == ("go", 0)
    assert told["why"] == f"{told['cells']} cells; {told['left_out']} more are for the interpreter"
    assert told["environment"]["gpu"] == card and told["environment"]["driver"] not in ("-", "unknown")
    plan = orch.json("launch", "tiny", *ON_CARD, "--set", "require=[parity]", "--dry-run")["plan"]
    assert plan["steps"][0].startswith("the kernels were found right here: kv-decode (")


def test_a_cell_that_ruins_the_process_is_wrong_and_the_rest_is_judged(orch: Orch, tmp_path: Path) -> None:
    orch.extra_env["PYTHONPATH"] = str(make_tree(tmp_path / "tree", FEW, ILLEGAL))
    try:
        told = orch.json("parity", SUITE, "--device", "cuda", code=1)
    finally:
        del orch.extra_env["PYTHONPATH"]
    assert (told["cells"], told["wrong"], told["why"]) == (6, 1, "1 of 6 cells")
    assert told["rows"][0]["verdict"].startswith("failed: ")
    assert len(restarts_of(orch.home.run(told["run"]))) == 1
