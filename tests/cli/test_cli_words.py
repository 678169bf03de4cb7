"""Figures and times as people read them, and columns that align."""

from __future__ import annotations

import pytest

from orchestrator.runs.render import brief, duration, figure, program, progress, table


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0, "0 s"), (0.02, "20 ms"), (4.25, "4.2 s"), (59.4, "59 s"), (59.9, "1 min 00 s"),
     (7500, "2 h 05 min"), (90_000, "1 d 01 h"), (-5, "0 s")],
)  # fmt: skip
def test_duration(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "-"), (35, "35s"), (81, "1m21s"), (7500, "2h05m"), (90_000, "1d01h")]
)
def test_brief(seconds, words):
    assert brief(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (2.09712, "2.097"), (5800.4, "5 800"), (1234567.0, "1 234 567"), (float("nan"), "nan"),
     (float("inf"), "inf"), (1e15, "1e+15"), (3e-4, "0.0003"), (0.0, "0")],
)  # fmt: skip
def test_figure(value, words):
    assert figure(value) == words


def test_table_and_progress():
    text = table(("A", "B"), [("x", "1"), ("longer\x1b[2J", "22")], width=12)
    assert text.split("\n") == ["A          …", "x          …", "longer\\x1b[…"]
    assert table(("A", "B"), [("x", "1"), ("yy", "22")], right=(1,)) == "A    B\nx    1\nyy  22"
    assert (progress(None, 5), progress(3, None), progress(3, 5)) == ("-", "3", "3/5")


def test_what_to_type_next_can_be_typed(tmp_path, monkeypatch):
    """Started by a path that the shell would not find, the hints name that path."""
    script = tmp_path / "bin" / "orch"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(script)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == str(script)
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "orch"
    monkeypatch.setattr("sys.argv", ["/x/orchestrator/cli/__main__.py"])
    assert program() == "orch"
