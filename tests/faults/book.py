"""The list of cells. A module registers its cells by `@cells(fault, moments...)`; `all_cells()` imports them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.faults.words import Cell, Fault, When

if TYPE_CHECKING:
    from tests.faults.stand import Stand

Play = Callable[["Stand", When], None]
_BOOK: dict[str, Cell] = {}


def cells(
    fault: Fault, *moments: When, root: bool = False, pids: bool = False, full: bool = False
) -> Callable[[Play], Play]:
    """Register one cell for each moment."""

    def register(play: Play) -> Play:
        for when in moments:
            cell = Cell(fault, when, play, root=root, pids=pids, full=full)
            assert cell.name not in _BOOK, cell.name
            _BOOK[cell.name] = cell
        return play

    return register


def all_cells() -> dict[str, Cell]:
    """Every cell by its name, in the order of the fault's enum."""
    from tests.faults import damage, full, machine, parts, people, ranks, sick  # noqa: F401

    order = list(Fault)
    return dict(sorted(_BOOK.items(), key=lambda item: (order.index(item[1].fault), list(When).index(item[1].when))))
