"""What facts mean, on recorded answers: tests/golden/facts/<case>.txt and the report of it, <case>.report.

`base.txt` is the answer of a machine with two H200; every other case has only the sections in which it differs, and
a section `without` for those that are missing. ORCH_REGEN=1 writes the reports anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.inventory.check import Checked, lines
from orchestrator.inventory.findings import judge
from pods.facts import PodFacts, facts_of
from pods.facts.sections import split_sections

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "facts"
CASES = sorted(p.stem for p in GOLDEN.glob("*.txt"))
NONCE = "RECORDED"


def facts_of_case(case: str) -> PodFacts:
    base = split_sections((GOLDEN / "base.txt").read_text(), NONCE)
    begin = float(base["begin"].text)
    changes = split_sections((GOLDEN / f"{case}.txt").read_text(), NONCE)
    gone = changes.pop("without").text.split() if "without" in changes else []
    sections = {k: v for k, v in {**base, **changes}.items() if k not in gone}
    return facts_of(sections, nonce=NONCE, asked=begin - 0.002, took_s=float(base["end"].text) - begin + 0.004)


def checked_of(case: str) -> Checked:
    facts = facts_of_case(case)
    return Checked("pod-a", facts, tuple(judge("pod-a", facts)))


@pytest.mark.parametrize("case", CASES)
def test_the_report_is_what_it_was(case: str) -> None:
    checked = checked_of(case)
    report = f"exit code {checked.exit_code}\n" + "\n".join(lines(checked)) + "\n"
    path = GOLDEN / f"{case}.report"
    if os.environ.get("ORCH_REGEN"):
        path.write_text(report)
    assert report == path.read_text()


def test_every_report_has_its_case() -> None:
    assert sorted(p.stem for p in GOLDEN.glob("*.report")) == CASES and len(CASES) > 40
