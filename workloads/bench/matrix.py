"""The cases that this rank measures: which ones, one at a time, each ending in a row of `kernels.bench.rows`.

The memory is probed in every attempt, before its first case: no limit comes from a datasheet. Called by
`workloads.bench.loop`.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

from kernels.bench import probe, rows
from kernels.bench.rows import Measured
from workloads.bench.config import BenchConfig
from workloads.bench.place import Place
from workloads.bench.suites import Case, Context, cases_of, suite_of
from workloads.contract.errors import LocalError, SpecError, escape
from workloads.judging.book import Book, Key, Row
from workloads.judging.machine import device_answers

GOOD = "ok"
MAX_WORDS = 400
CPU = torch.device("cpu")


def _no_room(device: torch.device) -> LocalError:
    free, total = torch.cuda.mem_get_info(device)
    return LocalError(
        "E-BENCH-006", "the GPU has too little free memory to be measured: other processes hold it",
        where=torch.cuda.get_device_name(device), value=f"{free >> 20} of {total >> 20} MiB are free",
        expected=f"{probe.READ_MIB[-1] + 1024} MiB or more", fix="orch pods check   (who is on the GPU)",
    )  # fmt: skip


class Matrix:
    """SpecError when none of the suites has a case for this device."""

    def __init__(self, config: BenchConfig, place: Place, book: Book) -> None:
        asked = config.asked
        self._device = torch.device("cuda", torch.cuda.current_device()) if place.device == "cuda" else CPU
        self._asked, self._book = asked, book
        self._context: Context | None = None
        self._facts = rows.facts(self._device, config.command)
        found = cases_of(asked.suites, self._device, quick=asked.quick)
        self.cases: dict[Key, Case] = {(suite, case.name): case for suite, case in found}
        self.absent = [s for s in asked.suites if all(suite != s for suite, _ in self.cases)]
        if not self.cases:
            raise SpecError(
                "E-BENCH-005", f"none of these suites has a case for {place.gpu}, of which there are {place.gpus}",
                where="bench.suites", value=", ".join(asked.suites), expected="a pod with more or other GPUs",
                fix="orch bench --pod NAME",
            )  # fmt: skip
        self.broken = False

    @property
    def probed(self) -> bool:
        return self._context is not None

    def probe(self) -> probe.Bandwidth:
        """Measure the memory. RuntimeError when the read kernel adds up wrong: then nothing can be told.

        LocalError when others hold the memory that it needs.
        """
        try:
            with torch.inference_mode():
                found = probe.measure(self._device, quick=self._asked.quick)
        except torch.cuda.OutOfMemoryError as e:
            raise _no_room(self._device) from e
        self._context = Context(self._device, self._asked.quick, self._asked.seed, found, self._book.rows)
        return found

    def measure(self, key: Key) -> Row:
        """The row of a case, whatever it raised. Sets `broken` when the device fails this process from now on."""
        suite, case = key[0], self.cases[key]
        try:
            measured = suite_of(suite).measure(case, self._ready)
        except Exception as e:  # a broken suite must not hide the other cases
            measured = _failed(case, f"{type(e).__name__}: {e}")
        self._free()
        if measured.verdict != GOOD and self._device.type == "cuda":
            self.broken = not device_answers()
        return self._row(suite, measured)

    def died(self, key: Key, deaths: int) -> Row:
        """The row of a case in which the process ended."""
        return self._row(key[0], _failed(self.cases[key], f"{deaths} processes in a row ended in this case"))

    def _row(self, suite: str, measured: Measured) -> Row:
        return rows.row_of(suite, measured, self._facts, self._ready.found.read_tbs)

    @property
    def _ready(self) -> Context:
        assert self._context is not None, "probe() comes first"
        return self._context

    def _free(self) -> None:
        """The memory of a case is given back before the next."""
        gc.collect()
        if self._device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError:
                self.broken = True


def _failed(case: Case, said: str) -> Measured:
    return Measured(case.name, {}, "-", 0, 0.0, "failed", extra={"error": said[:MAX_WORDS]})


def is_good(row: Mapping[str, Any]) -> bool:
    return row.get("verdict") == GOOD


def words(row: Mapping[str, Any]) -> str:
    """`18.6 us, 98 % of the limit, goal must` and the suite's own words; of a case that was not right what was said."""
    if not is_good(row):
        said = row.get("error") or f"error {row.get('err')}, allowed {row.get('tol')}"
        return escape(f"{row.get('verdict')}: {said}", MAX_WORDS)
    us, ratio, met = row.get("us"), row.get("ratio"), row.get("met")
    told = [f"{us:.4g} us" if isinstance(us, float) else "no time"]
    told += [f"{100 * ratio:.0f} % of the limit"] if isinstance(ratio, float) and ratio > 0 else []
    told += [] if met in (None, "-") else [f"goal {met}"]
    told += [escape(row["told"], MAX_WORDS)] if row.get("told") else []
    return ", ".join(told)
