"""Two ledgers held against each other: is what one run computed what the other computed, step by step?

A ledger has a line a step: which global batch (a hash over all ranks) and which loss, bit for bit as `float.hex`. Pure
but for reading the files, which may come from a pod: a line that is none is told, never passed over. Called by
`orch verify-resume`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workloads.contract.errors import IntegrityError, escape
from workloads.contract.files import read_bytes_bounded

MAX_LEDGER_BYTES = 1 << 30
_HEX = re.compile(r"[0-9a-f]{1,128}", re.ASCII)


@dataclass(frozen=True)
class Row:
    step: int
    attempt: int
    world_size: int
    batch_hash: str
    loss: str
    """as `float.hex`"""

    @property
    def value(self) -> float:
        return float.fromhex(self.loss)

    def words(self) -> str:
        return (
            f"step {self.step}  batch {self.batch_hash}  loss {self.loss} ({self.value:.6g})  attempt {self.attempt}, "
            f"{self.world_size} rank{'s' * (self.world_size != 1)}"
        )


@dataclass(frozen=True)
class Difference:
    """The first step at which two ledgers part. A row is None where the step is missing."""

    step: int
    what: str
    one: Row | None
    other: Row | None

    def as_json(self) -> dict[str, Any]:
        rows = {"one": self.one, "other": self.other}
        return {"step": self.step, "what": self.what, **{k: asdict(r) if r else None for k, r in rows.items()}}


def parse_rows(data: bytes, source: str) -> list[Row]:
    """Every whole line, in order. IntegrityError E-VERIFY-003 names the first one that is no row."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line:
            row = _row(line)
            if row is None:
                raise IntegrityError(
                    "E-VERIFY-003", f"line {number} of the ledger is no row", where=source,
                    value=escape(line.decode(errors="replace")), expected="a step, a batch hash and a loss",
                )  # fmt: skip
            rows.append(row)
    return rows


def _row(line: bytes) -> Row | None:
    try:
        told = json.loads(line)
        row = Row(told["step"], told["attempt"], told["world_size"], told["batch_hash"], told["loss"])
        numbers = type(row.step) is type(row.attempt) is type(row.world_size) is int
        float.fromhex(row.loss)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    return row if numbers and isinstance(row.batch_hash, str) and _HEX.fullmatch(row.batch_hash) else None


def read_ledger(path: Path) -> list[Row]:
    """The ledger at `path`; [] when there is none. IntegrityError as `parse_rows`."""
    try:
        data = read_bytes_bounded(path, MAX_LEDGER_BYTES)
    except FileNotFoundError:
        return []
    return parse_rows(data, str(path))


def read_lost(path: Path) -> list[Row]:
    """Rows that a resume cut off; the last of them may be torn, for its rank was killed."""
    try:
        data = read_bytes_bounded(path, MAX_LEDGER_BYTES)
    except FileNotFoundError:
        return []
    return [row for line in data.split(b"\n") if (row := _row(line)) is not None]


def first_difference(
    one: Sequence[Row], other: Sequence[Row], steps: int, *, after: int = 0, rel: float = 0.0
) -> Difference | None:
    """None when both hold the steps behind `after` to `steps`, each once and in order, with equal batches and losses.

    rel: losses may differ by that share of the greater one; 0: not by one bit.
    """
    for at in range(steps - after):
        step = after + at + 1
        a, b = (rows[at] if at < len(rows) else None for rows in (one, other))
        for row, name in ((a, "the first"), (b, "the other")):
            if row is None or row.step != step:
                what = f"{name} ledger has {'no row' if row is None else f'step {row.step}'} where step {step} belongs"
                return Difference(step, what, a, b)
        assert a is not None and b is not None
        if apart := _apart(a, b, rel):
            return Difference(step, apart, a, b)
    for rows, name in ((one, "the first"), (other, "the other")):
        if len(rows) > steps - after:
            extra = rows[steps - after]
            pair = (extra, None) if rows is one else (None, extra)
            return Difference(extra.step, f"{name} ledger goes on behind step {steps}", *pair)
    return None


def first_unlike(lost: Iterable[Row], final: Sequence[Row]) -> Difference | None:
    """Steps that were made twice, for a kill took them back: None when the second time gave what the first did."""
    by_step = {row.step: row for row in final}
    for row in lost:
        again = by_step.get(row.step)
        if again is not None and again.world_size == row.world_size and (what := _apart(row, again, 0.0)):
            return Difference(row.step, f"{what}, made a second time", row, again)
    return None


def _apart(a: Row, b: Row, rel: float) -> str | None:
    if a.batch_hash != b.batch_hash:
        return "another batch"
    if a.loss == b.loss:
        return None
    x, y = a.value, b.value
    if not rel:
        return "another loss"
    near = math.isfinite(x) and math.isfinite(y) and abs(x - y) <= rel * max(abs(x), abs(y))
    return None if near else f"a loss that differs by more than {rel:g} of it"
