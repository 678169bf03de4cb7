"""The gate itself: it covers what it says, passes the kernels, and says no-go to broken ones with the line to repeat"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import parity
from kernels.covering import pairwise, uncovered
from kernels.kv_decode import matrix
from kernels.kv_decode import parity as family
from kernels.kv_decode import plan as plan_module
from kernels.kv_decode.launch import Call, launch
from kernels.parity import Cell, choose, main, run_cell

CELLS, _ = choose(["kv-decode"], False, None, "cpu")


@pytest.fixture(autouse=True)
def _kernels_not_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_BACKEND", "triton")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def on_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter's cells; on a GPU run python -m kernels.parity --full")


def _slow(cell: Cell) -> bool:
    """Seven queries' plans, and 33 of them: seconds each in the interpreter."""
    return "plan7" in cell.id or "-S33-" in cell.id


@pytest.mark.parametrize(
    "cell", [pytest.param(c, id=c.id, marks=[pytest.mark.long] if _slow(c) else []) for c in CELLS]
)
def test_a_cell(cell: Cell) -> None:
    on_cpu()
    outcome = run_cell(cell, "cpu", 0)
    assert outcome.ok, f"{outcome.said}\n{parity.repeat(cell, 'cpu', 0)}"


@pytest.mark.gpu
def test_the_full_matrix_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert main(["kv-decode", "--device", "cuda", "--full", "--jobs", "12"]) == 0, capsys.readouterr().out


def cell_where(**wanted: object) -> Cell:
    """The first CI cell with these parameters."""
    return next(c for c in CELLS if all(c.params[k] == v for k, v in wanted.items()))


def drops_the_last_key(call: Call) -> Call:
    assert call.lens is not None
    return replace(call, lens=(call.lens - 1).clamp(min=0))


def forgets_the_mask(call: Call) -> Call:
    return replace(call, causal=False)


def counts_a_phantom_key(call: Call) -> Call:
    """The key behind the last one is loaded as 0 and not masked: exp(0 - m) more in the denominator."""
    assert call.lens is not None
    k, v = call.k_BKND.clone(), call.v_BKNE.clone()
    for b, n in enumerate(call.lens.tolist()):
        k[b, :, n], v[b, :, n] = 0.0, 0.0
    return replace(call, k_BKND=k, v_BKNE=v, lens=call.lens + 1)


def reads_a_slot_that_is_not_valid(call: Call) -> Call:
    assert call.lens is not None
    return replace(call, lens=call.lens + 1)


def appends_nothing(call: Call) -> Call:
    return replace(call, write=False)


def overwrites_the_last_token(call: Call) -> Call:
    assert call.lens is not None
    return replace(call, lens=(call.lens - 1).clamp(min=0))


def uses_another_scale(call: Call) -> Call:
    return replace(call, scale=call.scale * 1.01)


def changes_the_lengths(call: Call) -> Call:
    assert call.lens is not None
    call.lens.add_(1)
    return replace(call, lens=call.lens - 1)


def depends_on_the_batch(call: Call) -> Call:
    return replace(call, scale=call.scale * (1 + 1e-3 * call.q_BHSD.shape[0]))


def fails_to_compile(call: Call) -> Call:
    raise RuntimeError("out of resource: shared memory")


class Drifts:
    """Another answer the second time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, call: Call) -> Call:
        self.calls += 1
        return replace(call, scale=call.scale * (1 + 1e-3 * self.calls))


BROKEN: list[tuple[Callable[[Call], Call], dict[str, object], str]] = [
    (drops_the_last_key, {"call": "attention", "lengths": [1000, 3]}, "WRONG: error"),
    (drops_the_last_key, {"call": "attention", "lengths": [63, 64, 65]}, "WRONG: error"),
    (forgets_the_mask, {"call": "attention", "causal": True, "queries": 5}, "WRONG: error"),
    (forgets_the_mask, {"call": "plan1", "causal": True, "queries": 33}, "WRONG: error"),
    (counts_a_phantom_key, {"call": "attention", "lengths": [63, 64, 65]}, "WRONG: error"),
    (reads_a_slot_that_is_not_valid, {"call": "attention", "lengths": [63, 64, 65]}, "WRONG: error inf"),
    (reads_a_slot_that_is_not_valid, {"call": "plan7"}, "WRONG: the key cache is nan"),
    (appends_nothing, {"call": "step"}, "WRONG: the key cache is nan"),
    (overwrites_the_last_token, {"call": "step", "lengths": [127, 0, 129]}, "WRONG: the key cache is"),
    (uses_another_scale, {"call": "plan2", "dtype": "float32"}, "WRONG: error"),
    (changes_the_lengths, {"call": "step"}, "WRONG: the lengths changed"),
    (depends_on_the_batch, {"kind": "alone"}, "WRONG: row 0 alone"),
    (Drifts(), {"kind": "twice"}, "WRONG: the second output"),
    (fails_to_compile, {"call": "plan7"}, "failed: RuntimeError: out of resource"),
]


@pytest.mark.parametrize(
    ("broken", "wanted", "said"),
    BROKEN,
    ids=[f"{getattr(b, '__name__', 'drifts')}-{'-'.join(map(str, w.values()))}" for b, w, _ in BROKEN],
)
def test_a_broken_kernel_is_a_no_go(
    broken: Callable[[Call], Call],
    wanted: dict[str, object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_cpu()
    cell = cell_where(**wanted)
    monkeypatch.setattr(plan_module, "launch", lambda call, *rest: launch(broken(call), *rest))
    assert main(["kv-decode", "--device", "cpu", "--only", cell.id]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("WRONG") and cell.id in printed[0]
    assert printed[1].strip().startswith(said)
    assert printed[2].strip() == f"python -m kernels.parity kv-decode --device cpu --only '{cell.id}'"
    assert printed[-1].startswith("no-go: 1 of 1 cells wrong")


def test_a_failure_hides_no_other_cell_and_has_its_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    on_cpu()
    few = [cell_where(call="first"), cell_where(call="step"), cell_where(call="attention")]
    monkeypatch.setattr(family, "cells", lambda full: few)

    def fails_at_steps(call: Call) -> Call:
        return fails_to_compile(call) if call.write and call.lens is not None and call.lens.any() else call

    few[1] = cell_where(call="step", lengths=[127, 0, 129])
    monkeypatch.setattr(plan_module, "launch", lambda call, *rest: launch(fails_at_steps(call), *rest))
    rows = tmp_path / "results" / "rows.jsonl"
    assert main(["kv-decode", "--device", "cpu", "--jsonl", str(rows), "--seed", "3"]) == 1
    out = capsys.readouterr().out
    assert "no-go: 1 of 3 cells wrong" in out and "--seed 3" in out
    found = [json.loads(row) for row in rows.read_text().splitlines()]
    assert [row["case"] for row in found] == [cell.id for cell in few]
    assert [row["verdict"] for row in found] == ["ok", "failed: RuntimeError: out of resource: shared memory", "ok"]
    want = {"v", "suite", "case", "shape", "dtype", "device", "driver", "torch", "triton", "commit", "us", "limit_us"}
    for row in found:
        assert want | {"ratio", "err", "tol", "worst", "verdict", "command"} <= row.keys()
        assert row["suite"] == "parity-kv-decode" and row["device"] == "cpu" and len(row["commit"]) >= 7
        assert row["command"].endswith("--seed 3") and row["case"] in row["command"]
    assert found[0]["err"] <= found[0]["tol"] and found[1]["err"] is None and found[0]["dtype"].startswith("float")


def test_the_line_that_repeats_a_cell_runs_it(tmp_path: Path) -> None:
    """As a person types it, in processes of its own."""
    on_cpu()
    cell = cell_where(call="first", queries=1)
    command = shlex.split(parity.repeat(cell, "cpu", 0))
    root = Path(parity.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *command[1:], "--jobs", "2"], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "go: 1 cells"


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["kv-decode", "--only", "twice"], "no cell 'twice' in kv-decode; near: ['twice-plan7', 'twice-prefill']"),
        (["dense"], "no family 'dense': there are kv-decode, decoupled"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--device", "cpu"])
        assert stop.value.code == 2 and said in capsys.readouterr().err
    monkeypatch.setattr(family, "cells", lambda full: [])
    assert main(["kv-decode", "--device", "cpu"]) == 1  # nothing judged is no go
    monkeypatch.setattr(family, "cells", lambda full: [CELLS[0], CELLS[0]])
    with pytest.raises(ValueError, match="two cells"):
        parity.cells_of("kv-decode", False)


def test_the_array_covers_every_pair_and_every_value() -> None:
    small, whole = matrix.cells(False), matrix.cells(True)
    assert len(small) <= 60 and len(whole) <= 300
    assert matrix.cells(True) == whole  # the ids are stable
    single = {cell.id for cell in matrix.special(True)}
    tried = [cell.params for cell in whole if cell.id not in single]
    heads = [(p["q_heads"], p["kv_heads"]) for p in tried]
    dims = [(p["dim"], p["v_dim"]) for p in tried]
    cases = [
        {**{k: p[k] for k in ("call", "queries", "causal", "layout", "dtype", "big")}, "heads": h, "dims": d}
        for p, h, d in zip(tried, heads, dims, strict=True)
    ]
    factors: dict[str, Sequence[Any]] = {
        "call": matrix.CALLS,
        "queries": matrix.QUERIES,
        "causal": [True, False],
        "layout": matrix.LAYOUTS,
        "dtype": ["float16", "bfloat16"],
        "big": [False, True],
        "heads": matrix.HEADS,
        "dims": matrix.DIMS,
    }
    assert uncovered(factors, cases) == []
    for params in ([cell.params for cell in small], [cell.params for cell in whole]):
        assert {(p["q_heads"], p["kv_heads"]) for p in params} >= set(matrix.HEADS)
        assert {(p["dim"], p["v_dim"]) for p in params} >= set(matrix.DIMS)
        assert {p["queries"] for p in params} == set(matrix.QUERIES)
        assert {p["call"] for p in params} == set(matrix.CALLS)
        assert {tuple(p["lengths"]) for p in params} >= {tuple(n) for n in matrix.LENGTHS.values()}
        assert {p["layout"] for p in params} == set(matrix.LAYOUTS)


def test_pairwise_keeps_what_is_allowed_and_loses_nothing_else() -> None:
    factors = {"a": range(4), "b": range(3), "c": range(3), "d": range(2)}
    cases = pairwise(factors, lambda case: not (case.get("a") == 1 and case.get("b") == 2))
    assert uncovered(factors, cases) == [{"a": 1, "b": 2}]
    assert not any(case["a"] == 1 and case["b"] == 2 for case in cases)
    assert 12 <= len(cases) <= 16 and [list(case) for case in cases] == [list(factors)] * len(cases)
    assert cases == pairwise(factors, lambda case: not (case.get("a") == 1 and case.get("b") == 2))
    with pytest.raises(ValueError, match="'e' has no values"):
        pairwise({**factors, "e": []})
