"""`health:` of a job file: which rules watch a run, where their limits are and what may be done about it.

What a job does not name is as in `workloads.contract.healthtable`, so that `{}` is the whole table. A ladder that
could end a run without a dump, or for what could not be seen, is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from workloads.contract.config.base import Config, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt
from workloads.contract.health import SHARP, Mode, Rule, Rung
from workloads.contract.healthtable import PHASE_LIMITS_S, TABLE

ORDER = list(Rung)
SHARE = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
FRACTIONS = frozenset({Rule.SLOW, Rule.DATA_STALL, Rule.SHM_LOW})


class RuleSpec(Config):
    """One rule; a key that is left out is that of the table."""

    mode: Mode | None = None
    """default: `health.mode`"""
    limit: NonNegFloat | None = None
    """crossed: noted and dumped"""
    act_limit: NonNegFloat | None = None
    """crossed: the rest of the ladder; default: that of the table, and never below `limit`"""
    in_a_row: PositiveInt | None = None
    """beats that must cross it one after the other"""
    ladder: Annotated[list[Rung], Field(min_length=1)] | None = None
    """what is done, mildest first; `note` always is"""


class PhaseRuleSpec(Config):
    """`phase_over`: a limit for every phase."""

    mode: Mode | None = None
    limits: dict[str, PositiveFloat] = {}
    """seconds; a phase that is not named keeps its own"""
    act_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """how many times its limit a phase may take before it is ended"""
    ladder: Annotated[list[Rung], Field(min_length=1)] | None = None


class RulesSpec(Config):
    """Every rule by its name (`workloads.contract.health.Rule`)."""

    no_beat: RuleSpec = RuleSpec()
    no_step: RuleSpec = RuleSpec()
    phase_over: PhaseRuleSpec = PhaseRuleSpec()
    nan: RuleSpec = RuleSpec()
    loss_spike: RuleSpec = RuleSpec()
    slow: RuleSpec = RuleSpec()
    zero_throughput: RuleSpec = RuleSpec()
    data_stall: RuleSpec = RuleSpec()
    gate_collapse: RuleSpec = RuleSpec()
    grad_zero: RuleSpec = RuleSpec()
    behind: RuleSpec = RuleSpec()
    gone: RuleSpec = RuleSpec()
    stopped: RuleSpec = RuleSpec()
    stuck: RuleSpec = RuleSpec()
    pod_silent: RuleSpec = RuleSpec()
    gpu_missing: RuleSpec = RuleSpec()
    xid: RuleSpec = RuleSpec()
    ecc: RuleSpec = RuleSpec()
    disk_low: RuleSpec = RuleSpec()
    shm_low: RuleSpec = RuleSpec()
    clock_step: RuleSpec = RuleSpec()
    gpu_memory: RuleSpec = RuleSpec()
    host_memory: RuleSpec = RuleSpec()

    @model_serializer(mode="wrap")
    def _what_was_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """run.json has what the job said; two dozen rules of nulls say nothing."""
        said = {rule: {k: v for k, v in row.items() if v not in (None, {})} for rule, row in handler(self).items()}
        return {rule: row for rule, row in said.items() if row and getattr(self, rule) != type(getattr(self, rule))()}

    @model_validator(mode="after")
    def _sane(self) -> Self:
        for rule in Rule:
            spec: RuleSpec | PhaseRuleSpec = getattr(self, rule)
            key = f"health.rules.{rule}"
            if spec.ladder is not None:
                _check_ladder(key, rule, spec.ladder)
            if isinstance(spec, RuleSpec):
                _check_limits(key, rule, spec)
            elif wrong := sorted(set(spec.limits) - set(PHASE_LIMITS_S)):
                known = ", ".join(PHASE_LIMITS_S)
                raise ValueError(f"{key}.limits: knows no phase {wrong[0]}; the phases with a limit are {known}")
        return self


def _check_ladder(key: str, rule: Rule, ladder: list[Rung]) -> None:
    words = ", ".join(ladder)
    if [ORDER.index(r) for r in ladder] != sorted({ORDER.index(r) for r in ladder}):
        raise ValueError(f"{key}.ladder: must go from mild to sharp ({', '.join(ORDER)}), each at most once: {words}")
    sharpest = TABLE[rule].sharpest
    if ORDER.index(ladder[-1]) > ORDER.index(sharpest):
        raise ValueError(f"{key}.ladder: may not go beyond `{sharpest}`: {_why_not(rule)}")
    if ladder[-1] in SHARP and Rung.DUMP not in ladder:
        raise ValueError(f"{key}.ladder: needs `dump` before `{ladder[-1]}`: nothing is ended before it was dumped")


def _why_not(rule: Rule) -> str:
    match rule:
        case Rule.POD_SILENT:
            return "a pod that does not answer is not a run that is dead"
        case Rule.GPU_MEMORY | Rule.HOST_MEMORY:
            return "health.guard says what ends a run that fills memory"
        case _:
            return "it says nothing about the run itself"


def _check_limits(key: str, rule: Rule, spec: RuleSpec) -> None:
    default = TABLE[rule]
    if spec.limit is not None and default.limit is None:
        raise ValueError(f"{key}.limit: has no effect, this rule has no limit")
    if spec.act_limit is not None and default.act_limit is None:
        raise ValueError(f"{key}.act_limit: has no effect, this rule is acted upon where it is crossed")
    if spec.in_a_row is not None and default.in_a_row is None:
        raise ValueError(f"{key}.in_a_row: has no effect, this rule does not count beats")
    limit = default.limit if spec.limit is None else spec.limit
    if limit is not None and spec.act_limit is not None and spec.act_limit < limit:
        raise ValueError(f"{key}.act_limit: must be at least its limit, {limit:g} {default.unit}")
    if rule in FRACTIONS and spec.limit is not None and not 0 < spec.limit <= 1:
        raise ValueError(f"{key}.limit: is a share, above 0 and at most 1")


class GuardSpec(Config):
    """The memory guard, which lives on the pod and acts within `poll_secs`."""

    mode: Mode = Mode.OBSERVE
    """default: `act` where a limit or `action` is given here, else `observe`: a cache that fills a GPU is no fault"""
    gpu_limit_gb: PositiveFloat | None = None
    """of one GPU, 2^30 bytes each; default: gpu_limit_fraction"""
    gpu_limit_fraction: SHARE = 0.9
    over_secs: NonNegFloat = 0.0
    """how long it must be above its limit"""
    poll_secs: Annotated[float, Field(ge=0.05, le=60, allow_inf_nan=False)] = 0.5
    host_limit_fraction: SHARE = 0.95
    """of the smallest limit that holds: cgroup or machine. Above it the kernel soon chooses whom it ends"""
    host_over_secs: NonNegFloat = 5.0
    """how long the machine or the cgroup must be above its limit"""
    action: Literal[Rung.NOTE, Rung.DUMP, Rung.HALT, Rung.KILL] = Rung.HALT
    """the sharpest thing done, behind a dump: `.HALT`, or the end of the rank at once"""

    @model_validator(mode="before")
    @classmethod
    def _asked_for(cls, data: Any) -> Any:
        asked = ("gpu_limit_gb", "gpu_limit_fraction", "host_limit_fraction", "action")
        if isinstance(data, dict) and "mode" not in data and any(data.get(k) is not None for k in asked):
            return {**data, "mode": Mode.ACT}
        return data


class HealthSpec(Config):
    mode: Mode = Mode.ACT
    """`act`; `observe`: noted and dumped, nothing is ended; `off`"""
    rules: RulesSpec = RulesSpec()
    guard: GuardSpec = GuardSpec()
    dumps_per_hour: NonNegInt = 6
    """of the watchdog; the dump before an end is always made"""


def health_of(job: Mapping[str, Any]) -> HealthSpec:
    """`health` of the job in a run.json; the table's own where the run is older than these rules. ValueError."""
    return HealthSpec.model_validate_json(json.dumps(job.get("health") or {}))
