"""The table of rules in `runbooks/health.md`, out of the rules. `make evidence` writes it, a test compares."""

from __future__ import annotations

import re

from orchestrator.health.limits import describe
from workloads.contract.config.health import HealthSpec
from workloads.contract.health import Rule
from workloads.contract.healthtable import TABLE

BLOCK = re.compile(r"(?P<open><!-- rules -->\n).*?(?P<close><!-- /rules -->)", re.S)


def table() -> str:
    """Every rule as a job has it that says nothing of `health`."""
    lines = [
        "| rule | what it is about | limit | limit to act | beats in a row | ladder | a job may go up to | mode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule, what, limit, act, row, ladder, mode in describe(HealthSpec()):
        cells = (f"`{rule}`", what, limit, act, row, ladder, TABLE[Rule(rule)].sharpest.value, mode)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rebuilt(text: str) -> str:
    return BLOCK.sub(lambda m: m["open"] + table() + m["close"], text)
