"""Halts of every shape of rank leave no process behind: some by default, a hundred in the long tests.

A thousand of them: `make halts`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.halts.drive import Ending, drive
from tests.halts.full import full_halts
from tests.halts.rank import SHAPES


def clean(endings: list[Ending]) -> None:
    bad = [e for e in endings if e.story or e.left]
    assert not bad, "\n".join(e.story for e in bad[:3])


def test_no_shape_of_rank_leaves_a_process_behind(tmp_path: Path) -> None:
    endings = drive(len(SHAPES), seed=1, at_once=3, folder=tmp_path)
    clean(endings)
    assert {e.case.shape for e in endings} == set(SHAPES) and sum(e.processes for e in endings) > len(SHAPES)


@pytest.mark.long
@pytest.mark.parametrize("n", [30, pytest.param(100, marks=pytest.mark.proof)])
def test_many_halts(tmp_path: Path, n: int) -> None:
    endings = drive(n, seed=20261121, at_once=4, folder=tmp_path)
    clean(endings)
    assert sum(e.case.shim_dies for e in endings) >= n // 30 and sum(e.case.early for e in endings) >= n // 30
    assert {"halt-term", "halt-kill", "stopped", "shim-lost"} <= {e.cause for e in endings}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.proof)])
def test_halts_of_whole_runs(n: int) -> None:
    told: list[str] = []
    times, left = full_halts(n, told.append)
    assert left == 0 and len(times) == n, "\n".join(told)
