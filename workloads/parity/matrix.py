"""The cells of `kernels.parity` as this rank judges them: which ones, one at a time, each ending in that module's row.

Imported after `place.take_place`, which decides whether Triton interprets. Called by `workloads.parity.loop`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from kernels import parity
from workloads.contract.errors import SpecError, escape
from workloads.judging.book import Key, Row
from workloads.judging.machine import device_answers
from workloads.parity.ahead import Ahead, jobs_here
from workloads.parity.config import ParityConfig
from workloads.parity.place import Place

GOOD = "ok"
NO_MEMORY = "failed: OutOfMemoryError"


class Matrix:
    """SpecError when the job asks for a cell that there is not, or for none that this device can run."""

    def __init__(self, config: ParityConfig, place: Place) -> None:
        os.environ["KERNELS_BACKEND"] = "triton"  # never the reference against itself
        os.environ["KERNELS_COMMIT"] = config.commit  # a run's tree is no checkout
        self._device, self._seed = place.device, config.asked.seed
        try:
            found, self.left_out = parity.choose(
                config.asked.suites, config.asked.full, config.asked.only, place.device
            )
        except ValueError as e:
            raise SpecError(
                "E-PARITY-006", f"the matrix does not have that: {e}", where="parity.only", value=config.asked.only,
                fix="orch parity   (the table names every cell)",
            ) from e  # fmt: skip
        self.cells: dict[Key, parity.Cell] = {key_of(cell): cell for cell in found}
        if not self.cells:
            raise SpecError(
                "E-PARITY-007", f"none of these cells can be judged on device {place.device}", where="parity",
                value=config.asked.only, expected="a pod with a GPU", fix="orch parity --pod NAME",
            )  # fmt: skip
        self.broken = False
        self._ahead: Ahead | None = None

    def ahead(self, keys: Sequence[Key]) -> Ahead:
        """To be entered around the judging of these cells: processes that have their kernels compiled."""
        jobs = jobs_here(self._device, len(keys))
        self._ahead = Ahead([self.cells[key] for key in keys], self._device, self._seed, jobs)
        return self._ahead

    def judge(self, key: Key) -> Row:
        """The row of a cell, whatever it raised. Sets `broken` when the device fails this process from now on."""
        outcome = parity.run_cell(self.cells[key], self._device, self._seed)
        if outcome.said.startswith(NO_MEMORY) and self._ahead and self._ahead.stop():
            outcome = parity.run_cell(self.cells[key], self._device, self._seed)  # the device to itself
        if not outcome.ok and self._device == "cuda":
            self.broken = not device_answers()
        return self._row(outcome)

    def died(self, key: Key, deaths: int) -> Row:
        """The row of a cell in which the process ended."""
        said = f"failed: {deaths} processes in a row ended in this cell"
        return self._row(parity.Outcome(self.cells[key], None, said, 0.0))

    def _row(self, outcome: parity.Outcome) -> Row:
        (row,) = parity.rows([outcome], self._device, self._seed)
        return row


def key_of(cell: parity.Cell) -> Key:
    """As in the row of this cell."""
    return (f"parity-{cell.family}", cell.id)


def family_of(row: Mapping[str, Any]) -> str:
    return str(row["suite"]).removeprefix("parity-")


def is_good(row: Mapping[str, Any]) -> bool:
    return row.get("verdict") == GOOD


def words(row: Mapping[str, Any]) -> str:
    """`ok: error 2.1e-07, allowed 1.2e-05`; of a wrong cell what was said of it."""
    err, tol = row.get("err"), row.get("tol")
    if not is_good(row) or not isinstance(err, float) or not isinstance(tol, float):
        return escape(row.get("verdict"), 400)
    return f"ok: error {err:.3g}, allowed {tol:.3g}"
