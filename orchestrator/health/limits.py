"""The rules as one run has them: the table (`workloads.contract.healthtable`) with what the job says put in. Pure.

`settings` is what the rules run with; `describe` is the same for a person. Called by `monitor` and by views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workloads.contract.config.health import HealthSpec, PhaseRuleSpec
from workloads.contract.health import Mode, Rule, Rung
from workloads.contract.healthtable import PHASE_LIMITS_S, TABLE, RuleDefault

_MILDER = (Mode.OFF, Mode.OBSERVE, Mode.ACT)


@dataclass(frozen=True)
class Setting:
    """One rule of one run. `act_limit` is never below `limit`; both are 0 where the rule has none."""

    rule: Rule
    mode: Mode
    limit: float
    act_limit: float
    in_a_row: int
    ladder: tuple[Rung, ...]
    unit: str
    clear_s: float
    what: str
    phases: Mapping[str, float]  # of phase_over: seconds a phase
    act_factor: float


def settings(spec: HealthSpec) -> dict[Rule, Setting]:
    return {rule: _setting(spec, rule, default) for rule, default in TABLE.items()}


def _setting(spec: HealthSpec, rule: Rule, default: RuleDefault) -> Setting:
    own = getattr(spec.rules, rule)
    limit = act_limit = in_a_row = None
    phases: Mapping[str, float] = {}
    if isinstance(own, PhaseRuleSpec):
        phases = {**PHASE_LIMITS_S, **own.limits}
    else:
        limit, act_limit, in_a_row = own.limit, own.act_limit, own.in_a_row
    limit = limit if limit is not None else default.limit or 0.0
    act_limit = act_limit if act_limit is not None else default.act_limit
    asked = own.mode if own.mode is not None else spec.mode
    return Setting(
        rule=rule,
        mode=min(asked, spec.mode, key=_MILDER.index),
        limit=limit,
        act_limit=max(limit, act_limit if act_limit is not None else limit),
        in_a_row=in_a_row if in_a_row is not None else default.in_a_row or 1,
        ladder=tuple(dict.fromkeys((Rung.NOTE, *(own.ladder or default.ladder)))),
        unit=default.unit,
        clear_s=default.clear_s,
        what=default.what,
        phases=phases,
        act_factor=own.act_factor if isinstance(own, PhaseRuleSpec) else 1.0,
    )


def describe(spec: HealthSpec) -> list[Sequence[str]]:
    """Rows for a table: rule, what it is about, limit, limit to act, in a row, ladder, mode."""
    rows: list[Sequence[str]] = []
    for rule, s in settings(spec).items():
        default = TABLE[rule]
        limit = f"{s.limit:g} {s.unit}" if default.limit is not None else "-"
        act = f"{s.act_limit:g} {s.unit}" if default.act_limit is not None else "-"
        if s.phases:
            limit = ", ".join(f"{p} {v:g} s" for p, v in s.phases.items())
            act = f"{s.act_factor:g} x that"
        row = str(s.in_a_row) if default.in_a_row is not None else "-"
        rows.append((rule.value, s.what, limit, act, row, ", ".join(s.ladder), s.mode.value))
    return rows
