"""Two ledgers held against each other: one bit more or less is seen, and where."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.ledgers import Row, first_difference, first_unlike, parse_rows, read_ledger, read_lost
from workloads.contract.errors import IntegrityError

STEPS = 12


def rows(steps: int = STEPS, attempt: int = 1) -> list[Row]:
    rng = random.Random(5)
    return [Row(s, attempt, 2, f"{rng.getrandbits(64):016x}", (5.0 + rng.random()).hex()) for s in range(1, steps + 1)]


def wire(found: list[Row]) -> bytes:
    return b"".join(json.dumps(r.__dict__).encode() + b"\n" for r in found)


def next_up(row: Row) -> Row:
    return replace(row, loss=math.nextafter(row.value, math.inf).hex())


def test_equal_ledgers_of_other_attempts_and_worlds() -> None:
    other = [replace(r, attempt=3, world_size=1) for r in rows()]
    assert first_difference(rows(), other, STEPS) is None


@pytest.mark.parametrize("step", [1, 7, STEPS])
def test_the_last_bit_of_one_loss(step: int) -> None:
    other = rows()
    other[step - 1] = next_up(other[step - 1])
    found = first_difference(rows(), other, STEPS)
    assert found is not None and (found.step, found.what) == (step, "another loss")
    assert found.one == rows()[step - 1] and found.other == other[step - 1]
    assert first_difference(rows(), other, STEPS, rel=1e-5) is None


def test_another_batch_is_never_near() -> None:
    other = rows()
    other[4] = replace(other[4], batch_hash="0" * 16)
    found = first_difference(rows(), other, STEPS, rel=1.0)
    assert found is not None and (found.step, found.what) == (5, "another batch")


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, 6.1])
def test_a_loss_that_is_not_near(loss: float) -> None:
    other = rows()
    other[4] = replace(other[4], loss=loss.hex())
    found = first_difference(rows(), other, STEPS, rel=1e-5)
    assert found is not None and found.step == 5


def test_steps_that_are_missing_twice_or_too_many() -> None:
    one = rows()
    for other, step in (
        (one[:-1], STEPS), (one[:4] + one[5:], 5), (one[:5] + one[4:], 6), ([], 1), (rows(STEPS + 1), STEPS + 1),
    ):  # fmt: skip
        for pair in ((one, other), (other, one)):
            found = first_difference(*pair, STEPS)
            assert found is not None and found.step == step, (found, step)


def test_a_ledger_that_begins_behind_a_checkpoint() -> None:
    moved = [replace(r, world_size=1, loss=(r.value * (1 + 4e-6)).hex()) for r in rows()[5:]]
    assert first_difference(rows()[5:], moved, STEPS, after=5, rel=1e-5) is None
    found = first_difference(rows()[5:], moved, STEPS, after=5)
    assert found is not None and found.step == 6
    for wrong, step in ((moved[1:], 6), (rows(), 6), (moved[:-1], STEPS), ([*moved, rows(13)[-1]], 13)):
        found = first_difference(rows()[5:], wrong, STEPS, after=5, rel=1e-5)
        assert found is not None and found.step == step


def test_a_step_that_was_made_again_is_held_to_its_first_time() -> None:
    final = rows(attempt=2)
    lost = rows()[3:6]
    assert first_unlike(lost, final) is None
    found = first_unlike([*lost[:2], next_up(lost[2])], final)
    assert found is not None and (found.step, found.what) == (6, "another loss, made a second time")
    assert first_unlike([next_up(replace(lost[2], world_size=1))], final) is None  # another world: another sum


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"null", b'{"step":1}',
             b'{"step":true,"attempt":1,"world_size":1,"batch_hash":"a","loss":"0x1p0"}',
             b'{"step":1,"attempt":1,"world_size":1,"batch_hash":"zz","loss":"0x1p0"}',
             b'{"step":1,"attempt":1,"world_size":1,"batch_hash":"aa","loss":5.0}',
             b'{"step":1,"attempt":1,"world_size":1,"batch_hash":"aa","loss":"0x1p99999"}', b"[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_no_row_is_named(line: bytes) -> None:
    with pytest.raises(IntegrityError) as e:
        parse_rows(wire(rows()) + line + b"\n", "ledger.jsonl")
    assert e.value.code == "E-VERIFY-003" and f"line {STEPS + 1}" in e.value.what


@given(st.binary(max_size=300))
def test_any_bytes_are_rows_or_an_error(data: bytes) -> None:
    try:
        parse_rows(data, "x")
    except IntegrityError as e:
        assert e.code == "E-VERIFY-003"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert read_ledger(path) == [] and read_lost(path) == []
    path.write_bytes(wire(rows()) + b'{"step":13,"att\n')
    assert read_lost(path) == rows()
    with pytest.raises(IntegrityError):
        read_ledger(path)
