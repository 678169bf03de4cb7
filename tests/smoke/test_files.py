"""Rows and beats of any trainer: what is torn is counted, what is named otherwise is told, nothing is raised."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.smokefiles import Found, read_beats, read_csv


def csv(tmp_path: Path, text: str | bytes) -> Found:
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path)


def test_our_own_rows(tmp_path: Path) -> None:
    found = csv(tmp_path, "step,loss,lr,toks_per_s,grad_norm\n1,5.5,0.1,100.0,1.0\n2,5.25,0.1,110.0,nan\n")
    assert found.steps.rows == 2 and found.torn == 0 and found.notes == []
    assert list(found.steps.of("loss")) == [5.5, 5.25]
    assert math.isnan(found.steps.of("grad_norm")[1])


def test_torn_lines_are_counted_and_whole_ones_kept(tmp_path: Path) -> None:
    found = csv(tmp_path, b"step,loss,lr,toks_per_s\n1,5,0.1,9\n2,4\n\xff\xfe,3\n\n3,x,0.1,9\n4,3,0.1,9\n5,2.")
    assert found.steps.rows == 2 and found.torn == 4 and list(found.steps.of("step")) == [1, 4]
    assert "4 lines are torn or no row, and passed over" in found.notes


def test_columns_of_others_are_understood_and_told(tmp_path: Path) -> None:
    found = csv(tmp_path, "Global_Step,train_loss,tokens_per_sec,epoch,gpu_temp\n1,5,100,0,55\n2,4,120,0,56\n")
    assert list(found.steps.of("loss")) == [5, 4] and list(found.steps.of("toks_per_s")) == [100, 120]
    told = "; ".join(found.notes)
    assert "tokens_per_sec is toks_per_s" in told and "train_loss is loss" in told
    assert "no column lr" in told and "say nothing here: epoch, gpu_temp" in told


def test_rows_without_a_header(tmp_path: Path) -> None:
    found = csv(tmp_path, "1,5.0,0.1,100\n2,4.0,0.1,120\n")
    assert found.steps.rows == 2 and list(found.steps.of("toks_per_s")) == [100, 120]
    assert "there is no header" in found.notes[0]


def test_a_first_line_that_is_torn_is_no_header(tmp_path: Path) -> None:
    found = csv(tmp_path, "garbage here\nstep,loss\n1,5\n")
    assert found.torn == 1 and found.steps.rows == 1


def test_empty_fields_are_values_that_nobody_knows(tmp_path: Path) -> None:
    found = csv(tmp_path, "step,loss,lr,toks_per_s\n1,5,,\n2,4,0.1,100\n")
    assert found.steps.rows == 2 and list(found.steps.of("toks_per_s")) == [100]


def test_runs_behind_each_other_are_told(tmp_path: Path) -> None:
    found = csv(tmp_path, "step,loss\n1,5\n2,4\nstep,loss\n1,5\n2,4\n")
    assert found.steps.rows == 4
    assert any("header is repeated" in n for n in found.notes) and any("1 rows have a step" in n for n in found.notes)


def test_beats_of_any_trainer(tmp_path: Path) -> None:
    path = tmp_path / "beats.jsonl"
    lines = [
        json.dumps({"ts": 1, "msg": "progress", "step": 1, "train_loss": 5.0, "tok_s": 9, "gate_entropy_mean": 0.5}),
        json.dumps({"ts": 2, "msg": "checkpointing", "step": 1, "loss": 5.0}),
        '{"ts": 3, "step": 2, "lo',
        "[1, 2]",
        json.dumps({"ts": 4, "step": 2, "loss": 4.0, "gate_branch_shares": [0.2, 0.5, 0.3]}),
    ]
    path.write_text("\n".join(lines) + "\n")
    found = read_beats(path)
    assert found.steps.rows == 2 and list(found.steps.of("loss")) == [5, 4] and found.torn == 2
    assert found.gates == [{"gate_entropy_mean": 0.5}, {"gate_branch_shares": [0.2, 0.5, 0.3]}]


@given(st.binary(max_size=400) | st.text(alphabet='0123456789,.-+einfaNstep"{}:[]\n\t ', max_size=400).map(str.encode))
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(data)
    rows, beats = read_csv(path), read_beats(path)
    lines = sum(1 for line in data.split(b"\n") if line.strip())
    assert rows.steps.rows + rows.torn <= lines and beats.steps.rows + beats.torn <= lines
    assert all(len(column) <= rows.steps.rows for column in rows.steps.columns.values())


def test_a_line_without_end_costs_no_memory(tmp_path: Path) -> None:
    found = csv(tmp_path, b"step,loss\n1,5\n" + b"9" * (5 << 20) + b"\n2,4\n")
    assert found.steps.rows == 2 and found.torn >= 1
