"""training.csv and heartbeat files as a smoke reads them: also those of other trainers. Any bytes give steps and notes.

Tolerant and outspoken: a torn line, a column under another name, a header that is missing or repeated are counted and
told, never raised. Pure but for reading two files; a line is in memory at a time, a number a value stays. Called by
`orchestrator.runs.smoke`.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.runs.render import one_line
from workloads.contract.smoke import Steps

EXPECTED = ("step", "loss", "lr", "toks_per_s")
"""Columns that every training.csv begins with (contracts.md, Heartbeat); what a file without a header is taken for."""
ALIASES = {
    "step": ("global_step", "iter", "iteration"),
    "loss": ("train_loss", "train/loss", "training_loss"),
    "lr": ("learning_rate", "train/learning_rate"),
    "toks_per_s": (
        "toks/s", "tok/s", "tokens/s", "tokens_per_s", "tokens_per_sec", "tokens_per_second", "tps", "tok_s",
    ),
    "dt_fetch_s": ("fetch_s", "data_time", "data_time_s"),
    "step_time_s": ("step_time", "dt", "iter_time"),
}  # fmt: skip
_NAME = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
READ = frozenset({*EXPECTED, *ALIASES, "grad_norm", "mfu"})
"""Columns that something is made of here."""
MAX_LINE_BYTES = 1 << 16
MAX_COLUMNS, MAX_ROWS = 256, 10_000_000
MAX_NAMED = 8
CHUNK = 1 << 20
GATE_KEYS = ("gate_entropy_mean", "gate_max_gate", "gate_collapse_frac", "gate_branch_shares")


@dataclass
class Found:
    """What a file held. `torn`: lines that are no row; `headers`: headers after the first;
    `notes`: what a person should know of it, in words."""

    steps: Steps = field(default_factory=Steps)
    gates: list[dict[str, Any]] = field(default_factory=list)
    torn: int = 0
    headers: int = 0
    notes: list[str] = field(default_factory=list)


def read_csv(path: Path) -> Found:
    """Rows of a file with a header, or with none, in the order of the file. OSError as usual."""
    found, book = Found(), _Book()
    names: list[str] | None = None
    for line in _lines(path):
        cells = _cells(line)
        if names is None and cells is not None:
            names = _names(cells, found.notes)
            if names is not None and not _is_row(cells):
                continue
        if cells is None or names is None:
            found.torn += 1
        elif [_known(c) for c in cells] == names:
            found.headers += 1
        elif len(cells) != len(names) or not book.row(dict(zip(names, cells, strict=True))):
            found.torn += 1
        if book.rows >= MAX_ROWS:
            found.notes.append(f"only the first {MAX_ROWS} rows were read")
            break
    if names is not None:
        found.notes += _columns_told(names)
    if found.headers:
        found.notes.append("the header is repeated between rows: those of several runs follow each other")
    return _finished(found, book)


def read_beats(path: Path) -> Found:
    """Progress lines of a heartbeat file as rows, and the gate fields of all of its lines. OSError as usual."""
    found, book, step = Found(), _Book(), None
    for line in _lines(path):
        row = _object(line)
        if row is None:
            found.torn += 1
            continue
        if any(key in row for key in GATE_KEYS):
            found.gates.append({key: row[key] for key in GATE_KEYS if key in row})
        cells = {name: v for k, v in row.items() if (name := _known(k)) in READ}
        if "loss" in cells and "step" in cells and cells["step"] != step:  # the last step is told again at the end
            step = cells["step"]
            book.row(cells)
        if len(found.gates) >= MAX_ROWS or book.rows >= MAX_ROWS:
            break
    return _finished(found, book)


@dataclass
class _Book:
    """Columns of numbers as they are found."""

    rows: int = 0
    columns: dict[str, array[float]] = field(default_factory=dict)
    repeats: int = 0
    _last: float = -math.inf

    def row(self, cells: dict[str, Any]) -> bool:
        """Take a row in; False when nothing of it is a number, or something is none that has to be."""
        numbers = {name: x for name, cell in cells.items() if (x := _number(cell)) is not None}
        spoilt = any(name not in numbers for name, cell in cells.items() if name in EXPECTED and cell not in ("", None))
        if spoilt or not numbers or ("step" in cells and "step" not in numbers):
            return False
        step = numbers.get("step", math.inf)
        self.repeats += step <= self._last
        self._last = step if "step" in numbers else self._last
        for name, x in numbers.items():
            if name in self.columns or len(self.columns) < MAX_COLUMNS:
                self.columns.setdefault(name, array("d")).append(x)
        self.rows += 1
        return True


def _finished(found: Found, book: _Book) -> Found:
    found.steps = Steps(book.rows, book.columns)
    if found.torn:
        found.notes.append(f"{found.torn} line{'s are' if found.torn > 1 else ' is'} torn or no row, and passed over")
    if book.repeats:
        found.notes.append(f"{book.repeats} rows have a step that is not above that of the row before")
    return found


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends; the last one without a newline is torn only where it is no row. b"" is passed over."""
    with path.open("rb") as f:
        rest = b""
        while chunk := f.read(CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line for line in whole if line.strip())
            if len(rest) > MAX_LINE_BYTES:
                yield rest[: MAX_LINE_BYTES + 1]
                rest = b""
        if rest.strip():
            yield rest


def _cells(line: bytes) -> list[str] | None:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    separator = "\t" if "\t" in text and "," not in text else ","
    return [cell.strip().strip('"') for cell in text.split(separator)] if text.isprintable() or "\t" in text else None


def _object(line: bytes) -> dict[str, Any] | None:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _number(cell: object) -> float | None:
    """NaN and infinities count: a loss may be one. None: not a number."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None


def _is_row(cells: Sequence[str]) -> bool:
    return bool(cells) and all(_number(cell) is not None for cell in cells)


def _known(name: str) -> str:
    """The column's name in the contract, for one that other trainers use."""
    low = name.strip().lower()
    return _NAME.get(low, low)


def _names(cells: Sequence[str], notes: list[str]) -> list[str] | None:
    """Names of the columns, by the first line that is a header or, without one, a row; None: `cells` is neither."""
    if _is_row(cells):
        notes.append(f"there is no header: the columns are taken for {', '.join(EXPECTED[: len(cells)])}")
        return [*EXPECTED[: len(cells)], *(f"column {i + 1}" for i in range(len(EXPECTED), len(cells)))]
    names = [_known(c) for c in cells]
    if not set(names) & set(EXPECTED):
        return None
    taken = [f"{one_line(c, 40)} is {name}" for c, name in zip(cells, names, strict=True) if c.lower() != name]
    if taken:
        notes.append(f"columns under another name: {', '.join(taken[:MAX_NAMED])}")
    return names


def _columns_told(names: Sequence[str]) -> list[str]:
    missing = [name for name in EXPECTED if name not in names]
    extra = [one_line(name, 40) for name in names if name not in READ]
    told = [f"no column {', '.join(missing)}"] if missing else []
    more = f" and {len(extra) - MAX_NAMED} more" if len(extra) > MAX_NAMED else ""
    return told + ([f"columns that say nothing here: {', '.join(extra[:MAX_NAMED])}{more}"] if extra else [])
