"""The processes that compile ahead of a parity rank: they end when told and change no verdict."""

from __future__ import annotations

import time
from multiprocessing import active_children

import pytest

from kernels.parity import Cell, cells_of, run_cell
from tests.parity.trees import SUITE
from workloads.parity.ahead import Ahead, jobs_here


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return [c for c in cells_of(SUITE, False) if not c.gpu_only][:3]


def test_the_interpreter_has_none_and_a_device_not_more_than_there_are_other_cells() -> None:
    assert jobs_here("cpu", 100) == 0 and jobs_here("cuda", 1) <= 0
    assert 0 <= jobs_here("cuda", 100) <= 6


def test_they_end_with_the_block_in_the_middle_of_a_cell(cells: list[Cell]) -> None:
    with Ahead(cells * 100, "cpu", 0, jobs=2) as ahead:
        assert len(active_children()) == 2 and all(w.is_alive() for w in ahead.workers)
    assert not active_children()


def test_stop_tells_whether_there_was_one_to_end(cells: list[Cell]) -> None:
    with Ahead(cells * 100, "cpu", 0, jobs=1) as ahead:
        assert ahead.stop() and not ahead.stop()
    with Ahead(cells, "cpu", 0, jobs=0) as none:
        assert not none.stop()


@pytest.mark.long
def test_one_that_dies_or_is_asked_for_nonsense_disturbs_nobody(cells: list[Cell]) -> None:
    nonsense = [Cell(SUITE, "there is no such cell", {})] * 2
    with Ahead([*nonsense, *cells * 100], "cpu", 0, jobs=2) as ahead:
        ahead.workers[0].kill()
        assert run_cell(cells[0], "cpu", 0).ok
        deadline = time.monotonic() + 60
        while ahead.workers[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [w.is_alive() for w in ahead.workers] == [False, True]
