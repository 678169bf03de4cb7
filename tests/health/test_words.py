"""The words of health as files hold them, and the table of limits: a change here is a change of contract.

`ORCH_REGEN=1` writes the golden file again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from orchestrator.health.limits import describe
from workloads.contract.config.health import HealthSpec
from workloads.contract.health import ANOMALY, SHARP, Mode, Rule, Rung, anomaly_of

GOLDEN = Path(__file__).parents[1] / "golden" / "health.json"


def test_the_words_and_limits_are_those_of_the_golden_file() -> None:
    columns = ("rule", "what", "limit", "act_limit", "in_a_row", "ladder", "mode")
    today = {
        "modes": list(Mode),
        "rungs": list(Rung),
        "sharp": sorted(SHARP),
        "anomaly_type": {rule: anomaly_of(rule) for rule in Rule},
        "rules": [dict(zip(columns, row, strict=True)) for row in describe(HealthSpec())],
        "job": HealthSpec().model_dump(mode="json"),
    }
    text = json.dumps(today, indent=1, sort_keys=True) + "\n"
    if os.environ.get("ORCH_REGEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_what_scripts_read_in_anomaly_type() -> None:
    assert anomaly_of(Rule.NO_STEP) == anomaly_of(Rule.NO_BEAT) == "stall" and ANOMALY[Rule.NAN] == "nan"
    assert all(anomaly_of(rule).replace("_", "").isalpha() for rule in Rule)
